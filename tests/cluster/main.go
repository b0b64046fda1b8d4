// Command cluster is a Kubernetes cluster in one program, for tests: etcd, the API server, the controller manager, the
// scheduler, kubelet and kube-proxy as their projects build them, each with its own flags, and a small DNS server.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const usage = `usage: cluster etcd FLAGS
       cluster kube-apiserver FLAGS
       cluster kube-controller-manager FLAGS
       cluster kube-scheduler FLAGS
       cluster kubelet FLAGS
       cluster kube-proxy FLAGS
       cluster dns KUBECONFIG ADDRESS
       cluster credentials DIR URL ADDRESS...
       cluster node-credentials DIR URL NODE
       cluster ready KUBECONFIG api|controllers|node/NAME TIMEOUT`

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
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "kube-proxy":
		os.Exit(cli.Run(proxy.NewProxyCommand()))
	case "credentials":
		if len(os.Args) < 4 {
			fail(usage)
		}
		if err := writeCredentials(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
			fail(err)
		}
	case "node-credentials":
		if len(os.Args) != 4 {
			fail(usage)
		}
		if err := writeNodeCredentials(os.Args[1], os.Args[2], os.Args[3]); err != nil {
			fail(err)
		}
	case "dns":
		if len(os.Args) != 3 {
			fail(usage)
		}
		if err := serveDNS(os.Args[1], os.Args[2]); err != nil {
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
		if err := waitReady(os.Args[1], os.Args[2], timeout); err != nil {
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
