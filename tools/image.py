#!/usr/bin/env python3
"""image.py NAME OUT.tar FILE[:PLACE] … CONFIG: an image for tests, of files of this machine, without a container engine.

CONFIG is the image's `config` as JSON, such as {"Entrypoint": ["/x"]}. A dynamic executable brings its libraries. A
FILE that is busybox brings its applets as links. The result is an OCI layout in a tar: `ctr image import`.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
DIRECTORIES = {"bin": 0o755, "etc": 0o755, "root": 0o755, "run": 0o755, "var": 0o755, "tmp": 0o1777,
               "proc": 0o755, "sys": 0o755, "dev": 0o755}


def libraries(path):
    """What the dynamic loader takes for it; nothing for a static executable."""
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return [word for word in said.split() if word.startswith("/")]


def contents(files):
    """Path in the image → bytes, or the target of a link as text."""
    found = {path: text.encode() for path, text in ETC.items()}
    links = {}
    for file in files:
        source, _, place = file.partition(":")
        place = (place or source).lstrip("/")
        with open(source, "rb") as opened:
            found[place] = opened.read()
        for library in libraries(source):
            with open(library, "rb") as opened:
                found[library.lstrip("/")] = opened.read()
        if os.path.basename(source) == "busybox":
            applets = subprocess.check_output([source, "--list"], text=True).split()
            links.update({f"bin/{applet}": f"/{place}" for applet in applets})
    return found | {path: target for path, target in links.items() if path not in found}


def layer(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory, mode in DIRECTORIES.items():
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for path, content in contents(files).items():
            entry = tarfile.TarInfo(path)
            entry.mode = 0o755
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def descriptor(kind, data, **more):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data), **more}


def main(name, out, *rest):
    *files, config = rest
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    data = layer(files)
    of_layer = descriptor("layer.v1.tar", data)
    image = json.dumps({
        "architecture": machine, "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], **json.loads(config)},
        "rootfs": {"type": "layers", "diff_ids": [of_layer["digest"]]},
    }).encode()
    of_image = descriptor("config.v1+json", image)
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": of_image, "layers": [of_layer],
    }).encode()
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    platform = {"architecture": machine, "os": "linux"}
    of_manifest = descriptor("manifest.v1+json", manifest, platform=platform, annotations=names)
    blobs = {f"blobs/sha256/{of['digest'][7:]}": blob
             for of, blob in ((of_layer, data), (of_image, image), (of_manifest, manifest))}
    layout = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
              "index.json": json.dumps({"schemaVersion": 2, "manifests": [of_manifest]}).encode()}
    with tarfile.open(out, "w") as tar:
        for path, blob in (layout | blobs).items():
            entry = tarfile.TarInfo(path)
            entry.size = len(blob)
            tar.addfile(entry, io.BytesIO(blob))


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
