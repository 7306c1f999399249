//! What a pod can resolve, and one name step by step: the zone's word beside the resolver's answer in the pod.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use dns::{Finding, Hosts, ResolvConf, listing};
use kernel::Netns;
use trace::exchange::{AskNames, KnownName, Names, TriedName};
use types::Family;

use super::files::{self, Files};
use super::resolve::{self, SERVFAIL};
use super::views::{Views, Wired};

pub async fn names(views: &Views, asked: AskNames) -> Result<Names> {
    let wired = views.wired(&asked.pod).await?;
    let netns = wired.netns.clone();
    let files = tokio::task::spawn_blocking(move || files::of(&netns)).await?;
    let Files { conf, hosts } = files.unwrap_or_else(|| views.usual_files(&wired));
    let in_file: Vec<(IpAddr, Vec<String>)> =
        hosts.entries().map(|(address, names)| (address, names.to_vec())).collect();
    let mut names = Names {
        node: views.node().to_owned(),
        servers: conf.servers.clone(),
        search: conf.search.clone(),
        ndots: conf.ndots,
        hosts: in_file,
        known: Vec::new(),
        tried: Vec::new(),
    };
    match &asked.name {
        None => names.known = known(views, &conf, &hosts),
        // Whoever finds it in the file asks nobody.
        Some(name) if !hosts.addresses(name).is_empty() => {}
        Some(name) => names.tried = tried(views, &wired, &conf, name).await?,
    }
    Ok(names)
}

fn known(views: &Views, conf: &ResolvConf, hosts: &Hosts) -> Vec<KnownName> {
    let all = views.listing();
    let is_there = |name: &str| all.binary_search_by(|listed| listed.name.as_str().cmp(name)).is_ok();
    let known = all.iter().map(|listed| {
        let (name, step) = listing::shortest(&listed.name, (conf, hosts), is_there);
        let (addresses, alias) = (listed.addresses.clone(), listed.alias.clone());
        KnownName { name, step, full_name: listed.name.clone(), addresses, alias }
    });
    known.collect()
}

/// As a resolver does that wants any address: every name of the list in each family, up to the first that has one.
async fn tried(views: &Views, wired: &Wired, conf: &ResolvConf, name: &str) -> Result<Vec<TriedName>> {
    let mut families: Vec<Family> = wired.ips.iter().map(|ip| Family::of(*ip)).collect();
    families.dedup();
    let mut tried = Vec::new();
    for (full_name, step) in conf.candidates(name).into_iter().zip(1..) {
        let mut found = false;
        for family in families.iter().copied() {
            let expected = views.finding(&full_name, family);
            let (netns, conf, wanted) = (wired.netns.clone(), conf.clone(), full_name.clone());
            let answer = tokio::task::spawn_blocking(move || {
                let netns = Netns::open(&netns).context("open the pod's namespace to resolve")?;
                let began = Instant::now();
                let answer = resolve::ask(&netns, &wanted, &conf, family)?;
                Ok::<_, anyhow::Error>((answer, began.elapsed()))
            });
            let (answer, took) = answer.await??;
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let (addresses, error) = match answer {
                Ok(addresses) => (addresses, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let agrees = agrees(&expected, &addresses, error.as_deref());
            found |= !addresses.is_empty();
            let lacks = views.lacks_at(&full_name, &expected, family).await?;
            let expected = said(&expected, lacks);
            tried.push(TriedName {
                full_name: full_name.clone(),
                step,
                family,
                expected,
                addresses,
                error,
                agrees,
                micros,
            });
        }
        if found {
            break;
        }
    }
    Ok(tried)
}

/// The node's own resolvers may say what they like.
fn agrees(expected: &Finding, answer: &[IpAddr], error: Option<&str>) -> bool {
    match expected {
        Finding::Endless(_) => error.is_some_and(|error| error.ends_with(SERVFAIL)),
        _ if error.is_some() => false,
        Finding::Addresses { addresses, .. } => answer.iter().any(|address| addresses.contains(address)),
        Finding::Upstream { .. } => true,
        Finding::NoData | Finding::NoName | Finding::Invalid(_) | Finding::NotSynced => answer.is_empty(),
    }
}

fn said(finding: &Finding, lacks: Option<String>) -> String {
    match finding {
        Finding::Addresses { aliases, .. } if !aliases.is_empty() => format!("by {}", aliases.join(", ")),
        Finding::Addresses { .. } => "a name of the cluster".to_owned(),
        Finding::NoData => lacks.map_or_else(|| "it has none".to_owned(), |lacks| format!("no {lacks}")),
        Finding::NoName => match lacks {
            Some(lacks) => format!("no such name: no {lacks}"),
            None => "no such name".to_owned(),
        },
        Finding::Upstream { alias: Some(alias) } => {
            format!("leads to {alias}, of which the node's resolvers know")
        }
        Finding::Upstream { alias: None } => "the node's resolvers decide".to_owned(),
        Finding::NotSynced => "not listed yet".to_owned(),
        Finding::Endless(why) | Finding::Invalid(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_of_aliases_fails_as_the_objects_say() {
        let circle = Finding::Endless("alias circle: a → b → a".into());
        let fails = format!("10.96.0.10 {SERVFAIL}");
        assert!(agrees(&circle, &[], Some(&fails)));
        assert!(!agrees(&circle, &[], Some("10.96.0.10 did not answer within 500ms")));
        assert!(!agrees(&circle, &[[10, 96, 0, 7].into()], None));
        assert!(!agrees(&Finding::NoName, &[], Some(&fails)));
        assert!(agrees(&Finding::NoName, &[], None));
        assert_eq!(said(&circle, None), "alias circle: a → b → a");
    }
}
