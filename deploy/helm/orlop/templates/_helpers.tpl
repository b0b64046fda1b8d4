{{- define "orlop.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "orlop.labels" -}}
app.kubernetes.io/part-of: orlop
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "orlop.caAddress" -}}
{{ .Values.ca.address | default (printf "https://orlop-controller.%s.svc:15012" .Release.Namespace) }}
{{- end -}}

{{/* Only the controller makes one. */}}
{{- define "orlop.caRoots" -}}
{{- with .Values.ca -}}
{{- if and .address (not .roots.configMap) -}}
{{- fail "ca.address needs ca.roots.configMap: the ConfigMap with that CA's roots, such as istio-ca-root-cert" -}}
{{- end -}}
{{ .roots.configMap | default "orlop-ca-root" }}
{{- end -}}
{{- end -}}

{{/* Flags that nodes and controller must have alike. */}}
{{- define "orlop.meshArgs" -}}
- --trust-domain={{ .Values.mesh.trustDomain }}
{{- range .Values.mesh.trustDomainAliases }}
- --trust-domain-alias={{ . }}
{{- end }}
- --root-namespace={{ .Values.mesh.rootNamespace }}
- --cluster={{ .Values.mesh.cluster }}
- --cluster-domain={{ .Values.mesh.clusterDomain }}
{{- end -}}

{{/* What somebody reads who goes by everything that waypoints and gateways go by. */}}
{{- define "orlop.worldRules" -}}
- apiGroups: [""]
  resources: [namespaces, nodes, pods, services]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies, peerauthentications, requestauthentications]
  verbs: [list, watch]
- apiGroups: [networking.istio.io]
  resources: [serviceentries, workloadentries, virtualservices, destinationrules]
  verbs: [list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways, httproutes, grpcroutes, tlsroutes, tcproutes, referencegrants, backendtlspolicies]
  verbs: [list, watch]
- apiGroups: [orlop.dev]
  resources: [ratelimits, extensionproviders]
  verbs: [list, watch]
- apiGroups: [telemetry.istio.io]
  resources: [telemetries]
  verbs: [list, watch]
# The certificates that BackendTLSPolicies name, as the controller has copied them.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [orlop-backend-ca]
  verbs: [list, watch]
# Which of these kinds there are.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end -}}

{{/* Of a duration such as `1m 30s`, rounded up. */}}
{{- define "orlop.seconds" -}}
{{- $sum := 0 -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 "d" 86400 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $count := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}
{{- $sum = add $sum (div $count 1000) 1 -}}
{{- else -}}
{{- $sum = add $sum (mul $count (get $units $unit)) -}}
{{- end -}}
{{- end -}}
{{- $sum -}}
{{- end -}}
