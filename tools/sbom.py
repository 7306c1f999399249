#!/usr/bin/env python3
"""sbom.py OUT.json: what the programs of the image are made of, as CycloneDX 1.5, from Cargo.lock.

Each crate that plumb and plumb-cni are compiled from, without what only builds or tests: name, version, licence, and for
those of the registry the checksum that Cargo.lock has.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PROGRAMS = ("plumb", "cni-plugin")


def compiled_in():
    """(name, version) of what the programs are compiled from on this host, as cargo's own tree has it."""
    of = [word for program in PROGRAMS for word in ("-p", program)]
    tree = said("cargo", "tree", "--locked", "-e", "normal", "--prefix", "none", "--format", "{p}", *of)
    return {tuple(line.split()[:2]) for line in tree.splitlines() if line}


def said(*words):
    return subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=True).stdout


def checksums():
    """(name, version) -> SHA-256 of the crate's archive."""
    found = {}
    for package in (TOP / "Cargo.lock").read_text().split("[[package]]")[1:]:
        field = dict(re.findall(r'^(\w+) = "(.*)"$', package, re.M))
        if "checksum" in field:
            found[field["name"], field["version"]] = field["checksum"]
    return found


def component(package, sums):
    name, version = package["name"], package["version"]
    made = {"type": "library", "name": name, "version": version, "bom-ref": f"{name}@{version}"}
    if package["license"]:
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if package["source"]:
        made["purl"] = f"pkg:cargo/{name}@{version}"
        made["hashes"] = [{"alg": "SHA-256", "content": sums[name, version]}]
    return made


def main():
    known, wanted, sums = said("cargo", "metadata", "--format-version=1", "--locked"), compiled_in(), checksums()
    packages = [p for p in json.loads(known)["packages"] if (p["name"], f"v{p['version']}") in wanted]
    packages.sort(key=lambda p: (p["name"], p["version"]))
    version = next(p["version"] for p in packages if p["name"] == "plumb")
    bill = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "container", "name": "plumb.dev/plumb", "version": version}},
        "components": [component(package, sums) for package in packages],
    }
    Path(sys.argv[1]).write_text(json.dumps(bill, indent=1) + "\n")


if __name__ == "__main__":
    main()
