//! Owns: nothing: it carries what the runtime said to the agent, and back.
//! Never: an async runtime, TLS, credentials, or a decision that the agent can make.
//! In → Out: environment + stdin → `POST /cni` on the agent's socket → stdout and exit code.
//! Read first: [`main`].
//!
//! Called `loopback`, it is the plugin of that name and does its small work itself.
//!
//! Addresses have one owner, and policy is in the kernel before ADD returns, because one process does both.

mod loopback;
mod post;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Duration;

use cni::{Call, Code, Error, Reply, Request, Version};

fn main() -> ExitCode {
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("CNI_"))
        .collect();
    let mut stdin = Vec::new();
    let reply = match io::stdin().read_to_end(&mut stdin) {
        Ok(_) => answer(env, &stdin),
        Err(error) => {
            let msg = format!("the network configuration cannot be read from stdin: {error}");
            refuse(&Error::new(Code::Io, msg, "the container runtime has to write it there"), Version::LATEST)
        }
    };
    let mut out = io::stdout();
    match out.write_all(reply.stdout.as_bytes()).and_then(|()| out.flush()) {
        // A runtime that closed the pipe is gone; there is nobody left to tell.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "plumb-cni: its answer could not be written: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(reply.exit),
    }
}

fn refuse(error: &Error, version: Version) -> Reply {
    Reply { exit: 1, stdout: error.render(version) }
}

/// Bad input is refused here, so that it costs the agent nothing and is told even when the agent is away.
fn answer(env: BTreeMap<String, String>, stdin: &[u8]) -> Reply {
    let request = match Request::parse(&env, stdin) {
        Ok(request) => request,
        Err((error, version)) => return refuse(&error, version),
    };
    if std::env::args_os().next().is_some_and(|program| loopback::is_meant(program.as_ref())) {
        return loopback::answer(&request);
    }
    let version = request.version();
    let config = match &request {
        Request::Version(version) => return Reply { exit: 0, stdout: Request::versions(*version) },
        Request::Add(attach) | Request::Check(attach) => {
            if let Err(error) = not_our_own(attach.netns.as_deref(), &env) {
                return refuse(&error, version);
            }
            &attach.config
        }
        Request::Del(attach) => &attach.config,
        Request::Gc(gc) => &gc.config,
        Request::Status(config) => config,
    };
    let socket = config.agent_socket.clone().unwrap_or_else(|| types::wire::AGENT_SOCKET.into());
    let call = Call { env, stdin: String::from_utf8_lossy(stdin).into_owned() };
    let absence = match request {
        // It asks whether pods can be wired now.
        Request::Status(_) => Duration::ZERO,
        _ => post::ABSENCE,
    };
    post::call(&socket, &call, absence).unwrap_or_else(|trouble| {
        let code = match request {
            Request::Status(_) => Code::NotAvailable,
            _ => Code::TryAgainLater,
        };
        let msg = format!("Plumb's agent does not answer at {socket}: {trouble}");
        refuse(&Error::new(code, msg, next_step()), version)
    })
}

/// In a lab the kubelet passes on what lab and node this is.
fn next_step() -> String {
    let told = |name: &str| std::env::var(name).ok();
    let look = match (told(types::wire::LAB_VARIABLE), told(types::wire::NODE_VARIABLE)) {
        (Some(lab), Some(node)) => format!("start it: plumb lab agent start --name {lab} {node}"),
        _ => "look whether the agent runs on this node: kubectl -n kube-system get pods -o wide".to_owned(),
    };
    format!("the runtime will try again; if it goes on, {look}")
}

/// A wrong CNI_NETNS would take the host's own network apart: refused before anything is done.
fn not_our_own(netns: Option<&str>, env: &BTreeMap<String, String>) -> Result<(), Error> {
    let overridden = |value: &String| value == "1" || value.eq_ignore_ascii_case("true");
    let (Some(path), false) = (netns, env.get("CNI_NETNS_OVERRIDE").is_some_and(overridden)) else {
        return Ok(());
    };
    let identity = |path: &str| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let theirs = identity(path).map_err(|error| {
        let details = "the container may be gone; the runtime has to give a path that exists";
        Error::new(Code::UnknownContainer, format!("CNI_NETNS {path}: {error}"), details)
    })?;
    match identity("/proc/self/ns/net") {
        Ok(ours) if ours == theirs => Err(Error::new(
            Code::OwnNetns,
            format!("CNI_NETNS {path} is the network namespace that this program runs in"),
            "give the container's, or set CNI_NETNS_OVERRIDE=1",
        )),
        _ => Ok(()),
    }
}
