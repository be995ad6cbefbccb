"""Two steps: one greets, with a library that only this image has; one says where it ran."""

import os
from pathlib import Path

import idna

from tasker_worker import StepContext, depends_on, inputs, step_handler


@step_handler("greet")
@inputs("domain")
def greet(domain: str) -> dict[str, str]:
    return {"greeting": f"hello {idna.encode(domain).decode()}"}


@step_handler("look_around")
@depends_on(greeted="greet")
def look_around(greeted: dict[str, str], context: StepContext) -> dict[str, object]:
    return {
        "greeting": greeted["greeting"],
        "uid": os.getuid(),
        "can_write_root": os.access("/opt/tasker", os.W_OK),
        "can_write_tmp": os.access("/tmp", os.W_OK),
        "os": Path("/etc/os-release").read_text(encoding="utf-8").splitlines()[0],
    }
