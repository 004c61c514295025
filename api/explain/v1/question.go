// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Paths where the manager answers, by POST: a Question with an Explanation,
// and the empty object {} with a Diagnosis.
const (
	ExplainPath = "/explain"
	DoctorPath  = "/doctor"
)

// MaxQuestion bounds the JSON of a question in bytes: names of a namespace and
// a Pod take less than 400.
const MaxQuestion = 2 << 10

// Question is which Pod to explain.
type Question struct {
	Namespace string `json:"namespace"`
	// Pod is the Pod's name.
	Pod string `json:"pod"`
}

// Validate returns an error that names each field that is not usable, or nil.
func (q Question) Validate() error {
	var errs []error
	if len(validation.IsDNS1123Label(q.Namespace)) > 0 {
		errs = append(errs, fmt.Errorf("namespace %q: want the name of a namespace", q.Namespace))
	}
	if len(validation.IsDNS1123Subdomain(q.Pod)) > 0 {
		errs = append(errs, fmt.Errorf("pod %q: want the name of a Pod", q.Pod))
	}
	return errors.Join(errs...)
}
