"""Measures the memory of the SDK: what a client's process needs to send and to fetch a large model.

Each way is a process of its own against a real server. What counts is the most anonymous memory that it holds (what a
file backs, the system may drop at any time), above what it holds before there is a model. The tensors themselves are in
it, wherever there are some: a ratio of 1 is nothing beside them. In the round, the participant fetches the model, adds
to it in place, and submits it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fedround_client as fr
from measure import Usage, anonymous, fedround_server, keep

WAYS = (
    "upload numpy",
    "upload torch",
    "upload file",
    "download numpy",
    "download torch",
    "download file",
    "round numpy",
    "round torch",
)
TENSORS = 40


def weights(megabytes: int, seed: int) -> dict[str, Any]:
    """A model of so many megabytes, in tensors of many sizes."""
    rand = np.random.default_rng(seed)
    share = megabytes * 1_000_000 // 4 // (TENSORS * (TENSORS + 1) // 2)
    return {f"layer{number}": rand.random(share * number, dtype=np.float32) for number in range(1, TENSORS + 1)}


def train(model: dict[str, Any], round_: fr.Round) -> tuple[dict[str, Any], int]:
    for tensor in model.values():
        tensor += 1
    return model, 1


def work(way: str, server: str, token: str, megabytes: int, subject: str, file: Path) -> dict[str, float]:
    """Goes one way in this process.

    Returns:
        Bytes of anonymous memory before there is a model, and at the peak; seconds of the transfer.
    """
    what, how = way.split()
    if how == "torch":
        import torch
    with fr.connect(server, token) as client:
        client.myself()
        base = anonymous([os.getpid()])
        with Usage(os.getpid()) as usage:
            model: Any = file
            if what == "upload" and how != "file":
                model = weights(megabytes, seed=len(how))
                if how == "torch":
                    model = {name: torch.from_numpy(array) for name, array in model.items()}
            begin = time.perf_counter()
            if what == "upload":
                client.upload_model(model, name=way)
            elif what == "round":
                client.participate(train, training_id=subject, framework=how)
            elif how == "file":
                client.download_model(subject, to=file.with_name("fetched"))
            else:
                model = client.download_model(subject, framework=how)
            seconds = time.perf_counter() - begin
    return {"base": base, "peak": usage.peak_anonymous, "seconds": seconds}


def measure(way: str, address: str, admin: fr.Client, token: str, megabytes: int, model_id: str, file: Path) -> Any:
    """Goes one way in a new process."""
    subject = model_id
    if way.startswith("round"):
        user, token = admin.create_user(way)
        training = admin.create_training(model_id=model_id, name=way, target_num_updates=1, client_ids=[user.user_id])
        subject = admin.start_training(training.training_id).training_id
    words = [sys.executable, __file__, "--work", way, address, token, str(megabytes), subject, str(file)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    if way.startswith("round"):
        admin.wait(subject, timeout=60)
        admin.remove_training(subject)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Goes all ways, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1000, help="of the model, in 10^6 bytes")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        way, address, token, megabytes, subject, file = options.work
        print(json.dumps(work(way, address, token, int(megabytes), subject, Path(file))))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "model.safetensors"
        file.write_bytes(fr.to_safetensors(weights(options.size_mb, seed=0)))
        size = file.stat().st_size
        with fedround_server(folder / "data") as running, fr.connect(running.address, running.token) as admin:
            model_id = admin.upload_model(file, name="benchmark").model_id
            print(f"model {size / 1e6:.0f} MB      peak above base   / model   seconds")
            for way in options.ways:
                found = measure(way, running.address, admin, running.token, options.size_mb, model_id, file)
                above = found["peak"] - found["base"]
                figures[way] = {
                    "base_mb": round(found["base"] / 1e6, 1),
                    "peak_above_base_mb": round(above / 1e6, 1),
                    "ratio": round(above / size, 3),
                    "seconds": round(found["seconds"], 2),
                }
                print(f"{way:18} {above / 1e6:12.0f} MB {above / size:9.2f} {found['seconds']:9.1f}", flush=True)
    keep("sdk", {"model_mb": round(size / 1e6, 1), "ways": figures})


if __name__ == "__main__":
    main()
