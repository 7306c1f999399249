//! What keeps an agent to its own Node: rights by name cannot, since all agents are one account. The API server knows
//! the node of each pod's token (KEP-4193), and refuses an agent's change of another Node, and of the addresses of its own:
//! other agents believe these (docs/security.md).

use serde_json::{Value, json};
use types::wire::TOKEN_NODE;

use super::{NAME, NAMESPACE, metadata};

/// The policy and its binding, which puts it in force.
pub fn own_node() -> [Value; 2] {
    let agent = format!("request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{NAME}'");
    // A token that is bound to no pod and no Node names none.
    let node = format!("request.userInfo.extra[?'{TOKEN_NODE}'][0].orValue('')");
    // By name and value: nodes of both families have several of one type, which is the list's key.
    let addresses = |object: &str| {
        format!("{object}.?status.?addresses.orValue([]).map(one, one.type + ' ' + one.address)")
    };
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata(POLICY, false),
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["nodes", "nodes/status"],
            }]},
            "matchConditions": [{"name": "an-agent-of-plumb", "expression": agent}],
            "variables": [
                {"name": "node", "expression": node},
                {"name": "addresses", "expression": addresses("object")},
                {"name": "known", "expression": addresses("oldObject")},
            ],
            "validations": [{
                "expression": "object.metadata.name == variables.node",
                "messageExpression": "'an agent of Plumb changes its own Node alone; this token is of node \"' + \
                                      variables.node + '\"'",
                "reason": "Forbidden",
            }, {
                // In their order, too: the first decides by which family the tunnel goes.
                "expression": "oldObject != null && variables.addresses == variables.known",
                "message": "an agent of Plumb does not say where its Node is reached",
                "reason": "Forbidden",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": metadata(POLICY, false),
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    });
    [policy, binding]
}

const POLICY: &str = "plumb-own-node";
