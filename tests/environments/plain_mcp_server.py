"""The same counter in bare JSON-RPC on standard input and output: it starts at once."""

import json
import os
import sys

total = 0
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}}
TOOLS = [{"name": name, "inputSchema": NUMBER} for name in ("add", "pid", "die")]


def answer(method, params):
    global total  # noqa: PLW0603  (the session)
    match method, params:
        case "initialize", {"protocolVersion": version}:
            server = {"name": "plain", "version": "1"}
            return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
        case "tools/list", _:
            return {"tools": TOOLS}
        case "tools/call", {"name": "add", "arguments": {"number": number}}:
            total += number
            text = str(total)
        case "tools/call", {"name": "pid"}:
            text = str(os.getpid())
        case "tools/call", {"name": "die"}:
            os._exit(3)
        case _:
            return None
    return {"content": [{"type": "text", "text": text}]}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        result = answer(asked["method"], asked.get("params") or {})
        error = {"code": -32601, "message": "no such method"}
        said = {"result": result} if result is not None else {"error": error}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **said}), flush=True)
