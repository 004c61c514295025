// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command probe is what the Pods of the package's tests run.
//
//	probe serve :PORT     accept TCP connections and answer "hello"
//	probe dial ADDR...    connect to each address until it says "hello", for 10 s at most
//	probe cat FILE        print a file
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: probe serve|dial|cat ARGUMENT")
	}
	switch args[0] {
	case "serve":
		return serve(args[1])
	case "dial":
		for _, addr := range args[1:] {
			if err := dial(addr); err != nil {
				return err
			}
		}
		return nil
	case "cat":
		content, err := os.ReadFile(args[1])
		fmt.Print(string(content))
		return err
	}
	return fmt.Errorf("unknown verb %q", args[0])
}

func serve(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Fprint(conn, "hello")
		conn.Close()
	}
}

// dial tries until an endpoint that is about to come up is there.
func dial(addr string) error {
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			last = err
			continue
		}
		said, err := io.ReadAll(conn)
		conn.Close()
		if err == nil && string(said) == "hello" {
			return nil
		}
		last = fmt.Errorf("%s said %q: %w", addr, said, err)
	}
	return last
}
