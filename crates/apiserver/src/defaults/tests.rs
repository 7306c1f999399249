use super::*;
use crate::kind::KINDS;

fn filled(kind: &str, mut object: Value) -> Value {
    let row = KINDS.into_iter().find(|row| row.kind == kind).expect("a kind");
    apply(row, &mut object);
    let once = object.clone();
    apply(row, &mut object);
    assert_eq!(object, once, "defaults of defaults are the same");
    object
}

/// As kube-apiserver 1.36 shows them; `plumb/cluster defaults` compares the two.
#[test]
fn a_pod_has_what_kubectl_reads_without_looking() {
    let pod = filled("Pod", json!({"spec": {"containers": [{"name": "a", "image": "host:1"}]}}));
    assert_eq!(
        pod["spec"],
        json!({
            "containers": [{"name": "a", "image": "host:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "default",
            "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
        })
    );
}

#[test]
fn a_template_of_pods_has_not_what_only_pods_have() {
    let spec = json!({"hostNetwork": true, "containers": [{"name": "a", "image": "host",
        "ports": [{"containerPort": 80}]}]});
    let of_deployment = filled("Deployment", json!({"spec": {"template": {"spec": spec.clone()}}}));
    let template = &of_deployment["spec"]["template"]["spec"];
    for (field, value) in [("securityContext", json!({})), ("restartPolicy", "Always".into())] {
        assert_eq!(template[field], value, "{field}");
    }
    for field in ["enableServiceLinks", "serviceAccountName", "serviceAccount"] {
        assert_eq!(template.get(field), None, "{field}");
    }
    assert_eq!(template["containers"][0]["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    let pod = filled("Pod", json!({ "spec": spec }));
    let ports = json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]);
    assert_eq!(pod["spec"]["containers"][0]["ports"], ports);
    let named = filled("ReplicaSet", json!({"spec": {"template": {"spec": {"serviceAccount": "own"}}}}));
    assert_eq!(named["spec"]["template"]["spec"]["serviceAccountName"], "own");
}

/// Where Go has no pointer, its zero value is the same as nothing.
#[test]
fn what_is_empty_or_zero_says_nothing() {
    let probe = json!({"timeoutSeconds": 0, "periodSeconds": 0, "successThreshold": 0, "failureThreshold": 0,
        "httpGet": {"port": 80, "path": "", "scheme": ""}});
    let pod = filled(
        "Pod",
        json!({"spec": {"restartPolicy": "", "dnsPolicy": "", "schedulerName": "", "serviceAccountName": "",
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "a", "image": "host", "imagePullPolicy": "",
                "terminationMessagePath": "", "terminationMessagePolicy": "", "readinessProbe": probe,
                "ports": [{"containerPort": 80, "hostPort": 0, "protocol": ""}]}]}}),
    );
    let spec = &pod["spec"];
    let seen =
        ["restartPolicy", "dnsPolicy", "schedulerName", "serviceAccountName"].map(|field| &spec[field]);
    assert_eq!(seen, ["Always", "ClusterFirst", "default-scheduler", "default"]);
    // This one has a pointer: a pod may be killed at once.
    assert_eq!(spec["terminationGracePeriodSeconds"], 0);
    let container = &spec["containers"][0];
    assert_eq!(
        container["readinessProbe"],
        json!({"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
            "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}})
    );
    assert_eq!(
        (&container["imagePullPolicy"], &container["ports"]),
        (&json!("Always"), &json!([{"containerPort": 80, "protocol": "TCP"}]))
    );
    let service = filled(
        "Service",
        json!({"spec": {"type": "", "sessionAffinity": "", "ports": [
            {"port": 80, "targetPort": 0, "protocol": ""}, {"port": 81, "targetPort": ""}]}}),
    );
    assert_eq!(
        service["spec"],
        json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [
            {"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 81, "targetPort": 81, "protocol": "TCP"}]})
    );
    let deployment = filled("Deployment", json!({"spec": {"strategy": {"type": ""}}}));
    assert_eq!(
        deployment["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    let policy = filled("NetworkPolicy", json!({"spec": {"policyTypes": [], "egress": [{}]}}));
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
}

#[test]
fn images_that_may_change_are_pulled_always() {
    for (image, policy) in [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("registry:5000/web", "Always"),
        ("registry:5000/web:1", "IfNotPresent"),
        ("web@sha256:00", "IfNotPresent"),
        ("web:latest@sha256:00", "Always"),
    ] {
        assert_eq!(pull_policy(Some(&image.into())), policy, "{image}");
    }
}

#[test]
fn status_has_defaults_too() {
    let ingress =
        json!([{"ip": "203.0.113.1"}, {"hostname": "lb.example"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}]);
    let status = json!({"loadBalancer": {"ingress": ingress}});
    let service = filled("Service", json!({"spec": {"type": "LoadBalancer"}, "status": status}));
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "203.0.113.1", "ipMode": "VIP"}, {"hostname": "lb.example"},
            {"ip": "203.0.113.2", "ipMode": "Proxy"}])
    );
    let node = filled("Node", json!({"status": {"capacity": {"pods": "110"}}}));
    assert_eq!(node["status"]["allocatable"], json!({"pods": "110"}));
}
