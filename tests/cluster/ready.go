package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// waitReady returns once the API server answers ("api"), the controllers have made the service account that every pod
// needs ("controllers"), or a node is ready for pods ("node/NAME").
func waitReady(kubeconfig, what string, timeout time.Duration) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		node, isNode := strings.CutPrefix(what, "node/")
		switch {
		case what == "controllers":
			_, err = client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		case isNode:
			err = isReady(ctx, client, node)
		default:
			_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w", timeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// isReady fails with the reason unless a node is ready and takes pods.
func isReady(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("the node %s is not ready: %s", name, condition.Message)
		}
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("the node %s has the taint %s", name, node.Spec.Taints[0].ToString())
	}
	return nil
}
