// Command cluster is the control plane of a Kubernetes cluster in one program, for tests: etcd, the API server and the
// controller manager as their projects build them, each with its own flags.
package main

import (
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

const usage = `usage: cluster etcd FLAGS
       cluster kube-apiserver FLAGS
       cluster kube-controller-manager FLAGS
       cluster credentials DIR URL ADDRESS...
       cluster ready KUBECONFIG api|controllers TIMEOUT`

func main() {
	if len(os.Args) < 2 {
		fail(usage)
	}
	// The programs read their flags from here, and call themselves what comes first.
	os.Args = os.Args[1:]
	switch os.Args[0] {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case "credentials":
		if len(os.Args) < 4 {
			fail(usage)
		}
		if err := writeCredentials(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
			fail(err)
		}
	case "ready":
		if len(os.Args) != 4 {
			fail(usage)
		}
		timeout, err := time.ParseDuration(os.Args[3])
		if err != nil {
			fail(err)
		}
		if err := waitReady(os.Args[1], os.Args[2] == "controllers", timeout); err != nil {
			fail(err)
		}
	default:
		fail(usage)
	}
}

func fail(message any) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(2)
}
