"""A server of the Model Context Protocol with a counter for each session, over stdio or HTTP."""

import os
import socket
import sys

import anyio
import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.types import EmbeddedResource, TextContent, TextResourceContents

app = MCPServer("counter", instructions="Count with care.", log_level="CRITICAL")
totals = {}
calls = []


def session(context):
    request = context.request_context.request
    return request.headers.get("mcp-session-id") if request is not None else "stdio"


@app.tool()
def add(number: int, context: Context) -> str:
    """Add to the total."""
    calls.append(number)
    here = session(context)
    totals[here] = totals.get(here, 0) + number
    return str(totals[here])


@app.tool()
def double(number: int) -> int:
    calls.append(number)
    return 2 * number


@app.tool()
def called() -> int:
    return len(calls)


@app.tool()
def fail() -> str:
    raise ValueError("the tool is broken")


@app.tool(structured_output=False)
def show() -> list:
    text = TextResourceContents(uri="memo://1", text="a memo")
    picture = Image(data=b"\x89PNG" * 30, format="png")
    return [TextContent(text="Look:"), picture, EmbeddedResource(resource=text)]


@app.tool()
async def hang() -> str:
    await anyio.sleep_forever()


@app.tool()
def pid() -> int:
    return os.getpid()


@app.tool()
def die() -> str:
    os._exit(3)


if sys.argv[1:] == ["stdio"]:
    app.run()
else:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app.streamable_http_app(), log_level="critical")
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listening])
