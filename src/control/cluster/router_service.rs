//! The router's own Service, from which the base URL of scoring URIs is derived.

use serde::Deserialize;

use super::objects::{ObjectKey, PartialObject};

/// The router's Service as received from the API server.
pub(super) type RawService = PartialObject<ServiceSpec, ServiceStatus>;

/// The parts of a Service's spec that are read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ServiceSpec {
    #[serde(default)]
    ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    name: Option<String>,
    port: u16,
    app_protocol: Option<String>,
}

/// The parts of a Service's status that are read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    #[serde(default)]
    load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct LoadBalancerStatus {
    #[serde(default)]
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Debug, Clone, Deserialize)]
struct LoadBalancerIngress {
    ip: Option<String>,
    hostname: Option<String>,
}

impl ServicePort {
    fn is_https(&self) -> bool {
        self.port == 443 || self.name.as_deref() == Some("https") || self.app_protocol.as_deref() == Some("https")
    }
}

/// Returns the base URL of scoring URIs: with the address of the load balancer if there is one, otherwise with the name
/// inside the cluster; with TLS if there is a port for it. Returns `None` if the Service has no port.
pub(super) fn scoring_base_url(service: &RawService) -> Option<String> {
    let ports = &service.spec.as_ref()?.ports;
    let port = ports.iter().find(|port| port.is_https()).or(ports.first())?;
    let (scheme, default_port) = if port.is_https() { ("https", 443) } else { ("http", 80) };
    let external_host = service.status.iter().flat_map(|status| &status.load_balancer.ingress);
    let external_host =
        external_host.filter_map(|it| it.hostname.clone().or_else(|| Some(bracket_ipv6(it.ip.as_deref()?)))).next();
    let ObjectKey { namespace, name } = ObjectKey::from_object(service);
    let host = external_host.unwrap_or_else(|| format!("{name}.{namespace}.svc"));
    Some(if port.port == default_port {
        format!("{scheme}://{host}")
    } else {
        format!("{scheme}://{host}:{}", port.port)
    })
}

fn bracket_ipv6(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn url_for(ports: &Value, ingress: &Value) -> Option<String> {
        let service = json!({
            "metadata": {"name": "router", "namespace": "serving"},
            "spec": {"type": "LoadBalancer", "ports": ports},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        scoring_base_url(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn clients_are_sent_to_the_load_balancer_or_inside_the_cluster_and_with_tls_if_they_can() {
        let http = json!([{"name": "http", "port": 80, "targetPort": "scoring"}]);
        let both = json!([{"name": "http", "port": 80}, {"name": "https", "port": 8443}]);
        let none = json!([]);
        assert_eq!(url_for(&http, &none).unwrap(), "http://router.serving.svc");
        assert_eq!(url_for(&json!([{"port": 8080}]), &none).unwrap(), "http://router.serving.svc:8080");
        assert_eq!(url_for(&json!([{"port": 443}]), &json!([{"ip": "192.0.2.7"}])).unwrap(), "https://192.0.2.7");
        assert_eq!(url_for(&both, &json!([{"hostname": "a.example", "ip": "::1"}])).unwrap(), "https://a.example:8443");
        assert_eq!(url_for(&http, &json!([{"ip": "2001:db8::7"}])).unwrap(), "http://[2001:db8::7]");
        assert_eq!(url_for(&none, &none), None);
    }

    #[test]
    fn a_service_without_a_load_balancer_is_read_too() {
        let plain =
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": 80}]}, "status": {}});
        assert_eq!(scoring_base_url(&serde_json::from_value(plain).unwrap()).unwrap(), "http://a.b.svc");
    }
}
