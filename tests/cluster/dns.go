package main

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const suffix = ".svc.cluster.local."

// serveDNS answers for the names of Services that have an address, over UDP, and says of all others that they are not
// there.
func serveDNS(kubeconfig, address string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	services := factory.Core().V1().Services().Lister()
	factory.Start(context.Background().Done())
	factory.WaitForCacheSync(context.Background().Done())
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		// What is no question gets no answer.
		if reply, err := answer(services, buffer[:n]); err == nil {
			_, _ = socket.WriteTo(reply, from)
		}
	}
}

func answer(services listers.ServiceLister, request []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(request)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired},
		Questions: []dnsmessage.Question{question},
	}
	service := find(services, question.Name.String())
	if service == nil {
		reply.RCode = dnsmessage.RCodeNameError
		return reply.Pack()
	}
	for _, text := range service.Spec.ClusterIPs {
		address, err := netip.ParseAddr(text)
		if err != nil {
			// Headless.
			continue
		}
		head := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 1}
		switch {
		case address.Is4() && question.Type == dnsmessage.TypeA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: address.As4()}})
		case address.Is6() && question.Type == dnsmessage.TypeAAAA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: address.As16()}})
		}
	}
	return reply.Pack()
}

// find gives the Service that NAME.NAMESPACE.svc.cluster.local. is, or nil.
func find(services listers.ServiceLister, name string) *corev1.Service {
	short, ok := strings.CutSuffix(strings.ToLower(name), suffix)
	if !ok {
		return nil
	}
	name, namespace, ok := strings.Cut(short, ".")
	if !ok {
		return nil
	}
	service, err := services.Services(namespace).Get(name)
	if err != nil {
		return nil
	}
	return service
}
