"""The prediction server under load: errors, latency, memory; and what damaged requests do to it.

PYTHONPATH=tests python tests/benchmarks/serve_load.py --clients=8 --requests=200 --mutated=300

Starts the command `serve` with a checkpoint in a process of its own, and as many threads as there
are clients, each of which sends its requests one after the other over one connection: drawn scenes
of 96 x 128 as PNG, for PNG, JSON and probabilities in turn. Prints the percentiles of the seconds
of a request, requests per second, and the memory of the server before and after. Damaged requests
are whole HTTP messages with changed bytes, each over a connection of its own.
"""

import argparse
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.scenes import draw_scene
from mutate import damaged

ROOT = Path(__file__).parents[2]
QUERIES = ("", "?format=json", "?format=probs")
WARM_UP = 25  # requests of each client before the memory is measured
SECONDS = 5  # in which the server gives up a request
PATIENCE = 2 * SECONDS  # in which it must have said so


def main():
    """Prints the measurements; exits with 1 after an error, a hang, or growth above 10 percent."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--checkpoint", default="scenes")
    for name, default in (("clients", 8), ("requests", 200), ("mutated", 300)):
        flags.add_argument(f"--{name}", type=int, default=default)
    given = flags.parse_args()
    server, port, said = started(given.checkpoint)
    images = [encoded(draw_scene(7, number, 96, 128)["image"]) for number in range(16)]
    at_once(port, images, given.clients, WARM_UP)
    before, load, begun = memory(server.pid), os.getloadavg()[0], time.perf_counter()
    seconds = at_once(port, images, given.clients, given.requests)
    took, after = time.perf_counter() - begun, memory(server.pid)
    p50, p95, p100 = 1000 * np.percentile(seconds, (50, 95, 100))
    alone = 1000 * np.median(work(port, images, 60, 0))
    print(
        f"{len(seconds)} requests of {given.clients} clients: {len(seconds) / took:.1f} a second; "
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, max {p100:.0f} ms; one client: p50 {alone:.0f} ms\n"
        f"memory {before:.0f} -> {after:.0f} MB; load average before {load:.1f}"
    )
    with ThreadPoolExecutor(given.clients) as pool:
        messages = mutated(port, images[0], given.mutated)
        statuses = list(pool.map(lambda message: status_of(port, message), messages))
    counts = {str(each): statuses.count(each) for each in sorted(set(statuses), key=str)}
    print(f"damaged requests: {counts}; memory {memory(server.pid):.0f} MB")
    work(port, images, 1, 0)
    server.terminate()
    code = server.wait(60)
    failed = code or any("Traceback" in line for line in said) or {"hang", "500"} & set(counts)
    if failed or after > 1.1 * before:
        raise SystemExit(f"failed: exit code {code}\n{''.join(said)}")


def started(checkpoint: str) -> tuple[subprocess.Popen, int, list[str]]:
    """A server that is ready, its port, and the lines of its stderr, also of those to come."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ["-m", "diffseg_jax.serve", f"--checkpoint={checkpoint}", f"--port={port}"]
    program.append(f"--seconds={SECONDS}")
    server = subprocess.Popen(
        [sys.executable, *program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = []
    threading.Thread(target=lambda: said.extend(server.stderr), daemon=True).start()
    while server.stdout.readline() != "ready\n":
        if server.poll() is not None:
            raise SystemExit("".join(said))
    return server, port, said


def at_once(port: int, images: list[bytes], clients: int, count: int) -> np.ndarray:
    """The seconds of the requests of clients that ask at the same time."""
    with ThreadPoolExecutor(clients) as pool:
        done = pool.map(lambda number: work(port, images, count, number), range(clients))
    return np.concatenate(list(done))


def encoded(image: np.ndarray) -> bytes:
    """The image as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def work(port: int, images: list[bytes], count: int, first: int) -> np.ndarray:
    """The seconds of `count` requests over one connection; raises for any but 200."""
    connection, seconds = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
    for number in range(first, first + count):
        begun = time.perf_counter()
        query, image = QUERIES[number % len(QUERIES)], images[number % len(images)]
        connection.request("POST", f"/predict{query}", image, {"Content-Type": "image/png"})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"status {response.status}: {body[:500]}")
        seconds.append(time.perf_counter() - begun)
    return np.array(seconds)


def mutated(port: int, image: bytes, count: int) -> Iterator[bytes]:
    """Whole HTTP requests of an image, with one to three changes of their head or their body."""
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    form = b"multipart/form-data; boundary=x", start + image + b"\r\n--x--\r\n"
    for seed in range(count):
        kind, body = form if seed % 2 else (b"image/png", image)
        head = (
            b"POST /predict?format=json&flip=False HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
            b"Content-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        ) % (port, kind, len(body))
        if seed % 4 < 2:
            (head,) = damaged(head, seed, 1)
        else:
            (body,) = damaged(body, seed, 1)
        yield head + body


def status_of(port: int, message: bytes) -> int | str:
    """The status of the response to a message, or what happened instead.

    "closed" without a response, "unfinished" if the server waits for the rest of the message until
    the client has no more to say, and "hang" if it waits even then.
    """
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        try:
            connection.sendall(message)
            try:
                start = connection.recv(64)
            except TimeoutError:
                connection.shutdown(socket.SHUT_WR)
                return "hang" if connection.recv(64) else "unfinished"
        except TimeoutError:
            return "hang"
        except ConnectionError:
            return "closed"
    return int(start.split()[1]) if start.startswith(b"HTTP/") else "closed"


def memory(pid: int) -> float:
    """The resident memory of a process in MB; Linux only."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
