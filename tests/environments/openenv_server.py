"""OpenEnv servers: sums of numbers, a crowded one that takes a single session, and tools."""

import os
import socket
import threading

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_types import (
    CallToolAction,
    CallToolObservation,
    ListToolsAction,
    ListToolsObservation,
    Tool,
    ToolError,
)
from openenv.core.env_server.types import Action, Observation, State
from starlette.applications import Starlette
from starlette.routing import Mount

open_now = [0]


class Number(Action):
    number: int


class Total(Observation):
    total: int
    seed: int = 0
    open: int = 0


class Sums(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self.total = 0
        open_now[0] += 1

    def close(self):
        open_now[0] -= 1

    def reset(self, seed=None, first=0, **_):
        self.total = first
        return Total(total=first, seed=seed % 7, metadata={"salt": os.urandom(4).hex()})

    def step(self, action, timeout_s=None, **_):
        match action.number:
            case 13:
                raise ValueError("thirteen is no lucky number")
            case 500:
                os._exit(3)
            case 600:
                threading.Event().wait()
            case 700:
                return Total(total=self.total, open=open_now[0])
        self.total += action.number
        return Total(total=self.total, reward=float(action.number), done=self.total >= 7)

    @property
    def state(self):
        return State()


class Tools(Sums):
    def step(self, action, timeout_s=None, **_):
        match action:
            case ListToolsAction():
                numbers = {"type": "object", "properties": {"number": {"type": "integer"}}}
                add = Tool(name="add", description="Add.", input_schema=numbers)
                return ListToolsObservation(tools=[add, add.model_copy(update={"name": "fail"})])
            case CallToolAction(tool_name="add", arguments={"number": number}):
                self.total += number
                result = {"content": [{"type": "text", "text": str(self.total)}]}
                done = self.total >= 7
                return CallToolObservation(tool_name="add", result=result, reward=1.0, done=done)
            case CallToolAction():
                error = ToolError(error_type="execution_error", message="the tool is broken")
                return CallToolObservation(tool_name="fail", error=error)
        raise ValueError("call a tool")


app = Starlette(
    routes=[
        Mount("/sums", create_fastapi_app(Sums, Number, Total, max_concurrent_envs=8)),
        Mount("/crowded", create_fastapi_app(Sums, Number, Total)),
        Mount("/tools", create_fastapi_app(Tools, Action, Observation, max_concurrent_envs=8)),
    ]
)
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws_ping_interval=0.1)
    uvicorn.Server(config).run(sockets=[listening])
