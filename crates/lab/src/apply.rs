//! `-f manifest…`: reads YAML or JSON, and applies it through the API as `kubectl apply` does.

mod rehearsal;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, anyhow, bail};
use apiserver::kind::{KINDS, Kind};
use apiserver::manifest;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use types::Families;
use watch::Misused;

use crate::serving::{ANSWER, soon};

pub use rehearsal::Known;

/// One object of a manifest, and where it stands.
#[derive(Clone, Debug)]
pub struct Item {
    pub object: DynamicObject,
    /// As it was written.
    said: Value,
    kind: GroupVersionKind,
    origin: String,
}

impl Item {
    pub fn kind(&self) -> &str {
        &self.kind.kind
    }

    /// Where it is to be; `None`: its kind is in no namespace.
    pub fn namespace(&self) -> Result<Option<String>> {
        let given = || self.object.namespace().unwrap_or_else(|| "default".into());
        Ok(self.row()?.namespaced.then(given))
    }

    /// As the lab's API has such objects, or that it has none.
    fn row(&self) -> Result<&'static Kind> {
        let GroupVersionKind { group, version, kind } = &self.kind;
        let served = || KINDS.into_iter().filter(|row| row.kind == kind);
        if let Some(row) = served().find(|row| row.group == group && row.version == version) {
            return Ok(row);
        }
        let instead: Vec<String> = served().map(Kind::api_version).collect();
        match instead.as_slice() {
            [] => {
                let mut kinds: Vec<&str> = KINDS.iter().map(|row| row.kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                bail!("{}: a lab has no objects of kind {kind}; it has {}", self.origin, kinds.join(", "))
            }
            others => bail!("{}: a lab has {kind} as {}", self.origin, others.join(", ")),
        }
    }
}

/// `pod/web`, as kubectl names it.
impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = (self.kind.kind.to_lowercase(), self.object.name_any());
        match self.kind.group.as_str() {
            "" => write!(f, "{kind}/{name}"),
            group => write!(f, "{kind}.{group}/{name}"),
        }
    }
}

/// What `up` is given to apply.
#[derive(clap::Args, Debug)]
pub struct Manifests {
    /// Apply this manifest once the nodes are Ready, and wait for its Pods and Deployments: a file, a directory (its
    /// .yaml, .yml and .json files by name), or - for the standard input (may be given several times)
    #[arg(short = 'f', long = "file", value_name = "MANIFEST")]
    files: Vec<PathBuf>,
    /// The same of what `kubectl kustomize` makes of this directory, which wants kubectl on the PATH
    #[arg(short = 'k', long = "kustomize", value_name = "DIR")]
    kustomizations: Vec<PathBuf>,
}

/// The standard input, as kubectl has it.
const INPUT: &str = "-";

/// What is in manifests and what is wrong with them, in order; read before anything is started.
pub fn read(given: &Manifests) -> Result<Found> {
    if given.files.iter().filter(|path| path.as_os_str() == INPUT).count() > 1 {
        bail!(Misused("-f - is given twice: the standard input can be read once".into()));
    }
    let mut found = Found::default();
    for path in &given.files {
        found.some(&format!("-f {}", path.display()), |found| {
            if path.as_os_str() == INPUT {
                let text = std::io::read_to_string(std::io::stdin()).context("read the standard input")?;
                found.parse("the standard input", &text);
                return Ok(());
            }
            for file in files(path)? {
                match std::fs::read_to_string(&file) {
                    Ok(text) => found.parse(&file.display().to_string(), &text),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        found
                            .wrong
                            .push(anyhow!("-f {}: there is no such file or directory", file.display()));
                    }
                    Err(error) => found
                        .wrong
                        .push(Error::new(error).context(format!("read the manifest {}", file.display()))),
                }
            }
            Ok(())
        });
    }
    for directory in &given.kustomizations {
        let said = format!("-k {}", directory.display());
        found.some(&said, |found| {
            found.parse(&said, &kustomize(directory)?);
            Ok(())
        });
    }
    Ok(found)
}

/// Nothing, or all that is wrong: one in its own words, several below each other.
pub fn all_of(mut wrong: Vec<Error>) -> Result<()> {
    match wrong.len() {
        0 => Ok(()),
        1 => wrong.pop().map_or(Ok(()), Err),
        count => {
            let lines = wrong.iter().map(|error| format!("\n  {}", watch::told(error.as_ref())));
            Err(anyhow!("{count} errors{}", lines.collect::<String>()))
        }
    }
}

/// What is in manifests, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Found {
    items: Vec<Item>,
    wrong: Vec<Error>,
}

impl Found {
    /// The objects, unless something is wrong with one: all of that is told, with what an API would refuse.
    pub async fn rehearsed(mut self, families: Families, known: Known) -> Result<Vec<Item>> {
        // What cannot be read may have been a namespace of the others.
        let known = if self.wrong.is_empty() { known } else { Known::Part };
        self.wrong.extend(rehearsal::rehearse(&self.items, families, known).await?);
        all_of(self.wrong).context("nothing was started or applied")?;
        Ok(self.items)
    }

    /// Whoever gives manifests without an object has given others than he meant, such as those of a command that failed.
    fn some(&mut self, said: &str, read: impl FnOnce(&mut Self) -> Result<()>) {
        let before = (self.items.len(), self.wrong.len());
        if let Err(error) = read(self) {
            self.wrong.push(error);
        }
        if before == (self.items.len(), self.wrong.len()) {
            self.wrong.push(anyhow!(
                "{said}: there is no object in it, only white space and comments; leave it out, or give a manifest"
            ));
        }
    }

    fn parse(&mut self, source: &str, text: &str) {
        let documents: Vec<Value> = match serde_saphyr::from_multiple(text) {
            Ok(documents) => documents,
            Err(error) => {
                return self.wrong.push(anyhow!("{source}: {}; correct it there", watch::yaml(&error)));
            }
        };
        for (number, document) in documents.into_iter().enumerate() {
            let origin = format!("{source}, document {}", number + 1);
            match document.get("items") {
                Some(Value::Array(list)) if document.get("kind") == Some(&"List".into()) => {
                    list.iter().for_each(|object| self.take(object.clone(), &origin));
                }
                _ if document.is_null() => {}
                _ => self.take(document, &origin),
            }
        }
    }

    fn take(&mut self, object: Value, origin: &str) {
        match item(object, origin.to_owned()).and_then(|item| item.row().map(|_| item)) {
            Ok(item) => self.items.push(item),
            Err(error) => self.wrong.push(error),
        }
    }
}

/// The file itself, or the manifests of the directory by name, as `kubectl -f DIR` takes them.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    let manifest = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && matches!(extension, Some("yaml" | "yml" | "json"))
    };
    if let Some(name) = KUSTOMIZATIONS.iter().find(|name| path.join(name).exists()) {
        bail!("-f {0}: it has a {name}: give it by -k {0}", path.display());
    }
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(manifest).collect();
    if files.is_empty() {
        bail!("{} has no .yaml, .yml or .json file; a kustomization is given by -k", path.display());
    }
    files.sort();
    Ok(files)
}

/// As kustomize knows its directories.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Kustomize is kubectl's.
fn kustomize(directory: &Path) -> Result<String> {
    let at = || format!("kubectl kustomize {}", directory.display());
    let output = match Command::new("kubectl").arg("kustomize").arg(directory).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "-k {}: kustomize is a part of kubectl, and there is no kubectl on the PATH; install it, or give plain \
             manifests by -f",
            directory.display()
        ),
        Err(error) => return Err(error).with_context(at),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<String> = said.lines().map(without_log_head).collect();
        bail!("{}: {}", at(), lines.join("; "));
    }
    String::from_utf8(output.stdout).with_context(at)
}

/// `E1201 03:14:15.926535  42 run.go:72] "command failed" err="no such directory"` says what stands behind `err=`: that is how
/// kubectl logs (klog), and its other lines are plain.
fn without_log_head(line: &str) -> String {
    let logged =
        line.split_once("] ").filter(|(head, _)| head.starts_with(['E', 'F']) && head.contains(".go:"));
    let Some((_, said)) = logged else { return line.trim().to_owned() };
    let error = said.split_once("err=").and_then(|(_, error)| serde_json::from_str(error.trim()).ok());
    error.unwrap_or_else(|| said.trim().to_owned())
}

fn item(value: serde_json::Value, origin: String) -> Result<Item> {
    let text =
        |pointer: &str| value.pointer(pointer).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    for (field, value) in [("apiVersion", &version), ("kind", &kind), ("metadata.name", &name)] {
        if value.is_empty() {
            bail!("{origin}: the object has no {field}");
        }
    }
    let kind = match version.split_once('/') {
        Some((group, version)) => GroupVersionKind::gvk(group, version, &kind),
        None => GroupVersionKind::gvk("", &version, &kind),
    };
    let object = serde_json::from_value(value.clone())
        .map_err(|error| anyhow!("{origin}: {}, its metadata: {error}; correct it there", kind.kind))?;
    Ok(Item { object, said: value, kind, origin })
}

/// The code with which the API has refused it, if that is what went wrong.
fn refusal(error: &Error) -> Option<u16> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    })
}

/// Whether the API has said no, and is there for the next one.
pub fn is_refused(error: &Error) -> bool {
    refusal(error).is_some()
}

/// Creates the object, or makes the one that is there what the manifest says; returns kubectl's word for it. A later
/// `kubectl apply` finds what it wants to know: what this manifest said.
pub async fn apply(client: &Client, item: &Item) -> Result<&'static str> {
    let row = item.row()?;
    let resource = ApiResource::from_gvk_with_plural(&item.kind, row.plural);
    let name = item.object.name_any();
    let namespace = item.namespace()?;
    let api: Api<DynamicObject> = match &namespace {
        None => Api::all_with(client.clone(), &resource),
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let what = item.to_string();
    let refused = || format!("{}: {what}", item.origin);
    let manifest = manifest::annotated(row, &item.said);
    let Some(there) = soon(ANSWER, api.get_opt(&name)).await.with_context(refused)? else {
        // A field that does not exist is refused, as by kubectl.
        let url = DynamicObject::url_path(&resource, namespace.as_deref());
        let request = http::Request::post(format!("{url}?fieldValidation=Strict"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&manifest)?)?;
        soon(ANSWER, client.request::<DynamicObject>(request)).await.with_context(refused)?;
        return Ok("created");
    };
    let Some(patch) = manifest::changes(row, &manifest, &serde_json::to_value(&there)?) else {
        return Ok("unchanged");
    };
    let strict = PatchParams::default().validation_strict();
    let patched =
        soon(ANSWER, api.patch(&name, &strict, &Patch::Strategic(&patch))).await.with_context(refused)?;
    let changed = patched.resource_version() != there.resource_version();
    Ok(if changed { "configured" } else { "unchanged" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one text.
    pub(super) fn found(source: &str, text: &str) -> Found {
        let mut found = Found::default();
        found.some(&format!("-f {source}"), |found| {
            found.parse(source, text);
            Ok(())
        });
        found
    }

    fn parse(source: &str, text: &str) -> Result<Vec<Item>> {
        let found = found(source, text);
        all_of(found.wrong).map(|()| found.items)
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let text = "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\n\
                    kind: List\napiVersion: v1\nitems: [{kind: Pod}]\n";
        let told = parse("x.yaml", text).expect_err("none is right").to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 4, "{told}");
        assert_eq!(lines[..2], ["3 errors", "  x.yaml, document 1: the object has no metadata.name"]);
        assert!(
            lines[2].starts_with("  x.yaml, document 2: a lab has no objects of kind Secret; "),
            "{told}"
        );
        assert_eq!(lines[3], "  x.yaml, document 3: the object has no apiVersion");
    }

    #[test]
    fn a_line_of_a_log_says_what_its_error_says() {
        let logged = r#"E1201 03:14:15.926535      42 run.go:72] "command failed" err="no \"x\"""#;
        assert_eq!(without_log_head(logged), "no \"x\"");
        assert_eq!(without_log_head("error: no such directory"), "error: no such directory");
    }

    #[test]
    fn several_documents_and_lists_are_read_in_order() {
        let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: b, namespace: a}\n";
        let items = parse("x.yaml", text).expect("valid");
        let kinds: Vec<_> =
            items.iter().map(|item| (item.kind.group.as_str(), item.object.name_any())).collect();
        assert_eq!(kinds, [("", "a".to_owned()), ("apps", "b".to_owned())]);
    }

    #[test]
    fn manifests_without_an_object_are_none() {
        for text in ["", "\n", "# Nothing.\n---\n---\n", "apiVersion: v1\nkind: List\nitems: []\n"] {
            let error = parse("x.yaml", text).expect_err(text);
            assert!(error.to_string().starts_with("-f x.yaml: there is no object in it"), "{error}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let error = parse("x.yaml", "kind: Pod\nmetadata: {name: a}\n").expect_err("no apiVersion");
        assert_eq!(error.to_string(), "x.yaml, document 1: the object has no apiVersion");
        let error = parse("x.yaml", "a: b\nc: [\nd: {\n").expect_err("no YAML").to_string();
        assert!(error.starts_with("x.yaml: it cannot be read as YAML: "), "{error}");
        assert!(error.contains(" at line ") && error.ends_with("; correct it there"), "{error}");
        assert!(!error.contains(['\n', '^', '|']), "{error}");
        for tabs in ["\tapiVersion: v1\n\tkind: Pod\n", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n"] {
            let error = parse("x.yaml", tabs).expect_err("tabs").to_string();
            assert!(error.contains("tab"), "{error}");
        }
    }

    #[test]
    fn what_a_lab_has_no_objects_of_is_refused_before_it_is_started() {
        let refused = |version: &str, kind: &str| {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n");
            parse("x.yaml", &text).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(refused("apps/v1", "Deployment"), Ok(()));
        assert_eq!(
            refused("extensions/v1beta1", "Deployment"),
            Err("x.yaml, document 1: a lab has Deployment as apps/v1".to_owned())
        );
        let error = refused("v1", "Secret").expect_err("not there");
        assert!(
            error.starts_with("x.yaml, document 1: a lab has no objects of kind Secret; it has "),
            "{error}"
        );
    }
}
