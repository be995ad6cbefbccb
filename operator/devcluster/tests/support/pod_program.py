"""A program for pods of the node's tests, in place of an image: answers on its port with what it was given.

``serve`` answers until SIGTERM; ``stubborn`` also after it; ``exit CODE`` ends at once; ``print N TEXT CODE`` after N
lines, ``leave TEXT`` with a message in the file that LAST_WORDS names; ``family`` serves and has a
child of its own. ``GET /`` gives arguments, environment, working folder and process numbers as JSON; ``GET /file?PATH``
gives a file; ``GET /set/live/0`` and the like change what ``/live`` and ``/ready`` answer. Standard library only, and
little of it: it must be up within milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

ANSWERS = {"live": "1", "ready": "1"}


def main() -> None:
    arguments = sys.argv[1:]
    print("up", time.time(), *arguments, flush=True)
    match arguments[0]:
        case "exit":
            sys.exit(int(arguments[1]))
        case "print":
            for number in range(int(arguments[1])):
                print(arguments[2], number, flush=True)
            sys.exit(int(arguments[3]))
        case "leave":
            with open(os.environ["LAST_WORDS"], "w") as file:  # noqa: PTH123 - as below
                file.write(arguments[1])
            sys.exit(1)
        case "stubborn":
            signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
    child = 0
    if arguments[0] == "family":
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
    ANSWERS["ready"] = os.environ.get("READY", "1")
    with socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                path = connection.recv(65536).split(b" ")[1].decode()
                status, body = answer(path, arguments, child)
                head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)


def answer(path: str, arguments: list[str], child: int) -> tuple[int, bytes]:
    if path.startswith("/set/"):
        name, value = path.removeprefix("/set/").split("/")
        ANSWERS[name] = value
        return 200, b""
    if path.startswith("/file?"):
        with open(path.removeprefix("/file?"), "rb") as file:  # noqa: PTH123 - pathlib takes as long to import as all else
            return 200, file.read()
    if path.strip("/") in ANSWERS:
        good = ANSWERS[path.strip("/")] == "1"
        return (200 if good else 503), b"" if good else b"told to say no"
    told = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    return 200, json.dumps({**told, "pid": os.getpid(), "session": os.getsid(0), "child": child}).encode()


if __name__ == "__main__":
    main()
