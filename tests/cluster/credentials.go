package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// writeCredentials makes everything that the parts of a control plane prove to each other who they are with: a CA, the
// API server's certificates for the addresses and for asking kubelets, the key that signs service accounts' tokens, and
// kubeconfigs of whoever there is without a node.
func writeCredentials(dir, url string, addresses []string) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
	}
	for _, address := range addresses {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(address))
	}
	certificate, key, err := ca.issue(server)
	if err != nil {
		return err
	}
	asksKubelets, itsKey, err := ca.issue(client(pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}))
	if err != nil {
		return err
	}
	_, tokens, err := newKey()
	if err != nil {
		return err
	}
	encoded, err := ca.encodeKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": ca.pem, "ca.key": encoded, "apiserver.crt": certificate, "apiserver.key": key,
		"kubelet-client.crt": asksKubelets, "kubelet-client.key": itsKey, "tokens.key": tokens,
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	users := map[string]pkix.Name{
		"admin":       {CommonName: "admin", Organization: []string{"system:masters"}},
		"controllers": {CommonName: "system:kube-controller-manager"},
		"scheduler":   {CommonName: "system:kube-scheduler"},
	}
	for name, subject := range users {
		if err := ca.writeKubeconfig(dir, url, name, subject); err != nil {
			return err
		}
	}
	return nil
}

// writeNodeCredentials makes the kubeconfigs NODE.kubeconfig of a node's kubelet and NODE-proxy.kubeconfig of its
// kube-proxy.
func writeNodeCredentials(dir, url, node string) error {
	ca, err := readAuthority(dir)
	if err != nil {
		return err
	}
	if err := ca.writeKubeconfig(dir, url, node, pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}); err != nil {
		return err
	}
	return ca.writeKubeconfig(dir, url, node+"-proxy", pkix.Name{CommonName: "system:kube-proxy"})
}

// writeKubeconfig makes NAME.kubeconfig.
func (ca *authority) writeKubeconfig(dir, url, name string, subject pkix.Name) error {
	certificate, key, err := ca.issue(client(subject))
	if err != nil {
		return err
	}
	config := api.NewConfig()
	config.Clusters["test"] = &api.Cluster{Server: url, CertificateAuthorityData: ca.pem}
	config.AuthInfos[name] = &api.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: name}
	config.CurrentContext = "test"
	return clientcmd.WriteToFile(*config, filepath.Join(dir, name+".kubeconfig"))
}

func client(subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority() (*authority, error) {
	key, _, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := complete(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "test-cluster"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	})
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key, encode("CERTIFICATE", der)}, nil
}

// readAuthority finds the one that writeCredentials has made.
func readAuthority(dir string) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	return &authority{pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey), encode("CERTIFICATE", pair.Leaf.Raw)}, nil
}

func (ca *authority) encodeKey() ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(ca.key)
	return encode("EC PRIVATE KEY", der), err
}

// issue gives the certificate and its key, both as PEM.
func (ca *authority) issue(template *x509.Certificate) ([]byte, []byte, error) {
	key, encoded, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template, err = complete(template)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	return encode("CERTIFICATE", der), encoded, nil
}

func complete(template *x509.Certificate) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	return template, err
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return key, encode("EC PRIVATE KEY", der), err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
