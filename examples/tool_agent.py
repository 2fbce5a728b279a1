"""A tool agent that fails without search and succeeds with it.

A traveller asks an agent to reach a city with the coins in the purse. The agent has one tool,
`ride`, and is told after each ride where trains go from here. Trains go one way: the city that lies
nearest to the goal is often one from which there is no way on, or none that can be paid.

The agent (policy and world) is the same in every row of the table; only the controller differs.
Without search it takes one way (`rollout`, and `rollout, greedy` at temperature 0). `best of n`
takes several ways from the start. The other three leave a way that does not look good for another:

    python examples/tool_agent.py                                         # a scripted model
    python examples/tool_agent.py --model qwen2.5-coder-0.5b-instruct --tasks 20

A real model is asked for less: the first four rows, and 40 nodes for each task. What that may cost
is printed first.

The reward is 1 where the traveller arrives, and comes at the end only. What guides the search is a
verifier that knows neither the trains nor the answer: the distance that is left, and whether the
purse could pay it at the least price there is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from branchwise import (
    HF,
    MCTS,
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Function,
    Node,
    Rollout,
    Sampling,
    Scripted,
    State,
    Step,
    Task,
    Tool,
    Verdict,
    solve,
)
from branchwise.agents.react import ReAct
from branchwise.agents.tool_user import ToolUser
from branchwise.core.tools import validated
from branchwise.verifiers.quality import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from branchwise import Answer, Backend, Controller, Request
    from branchwise.agents.chat import Chat

CITIES = [
    "Arles",
    "Bergen",
    "Cadiz",
    "Dover",
    "Essen",
    "Ferrara",
    "Ghent",
    "Huesca",
    "Ivrea",
    "Jena",
    "Kotor",
    "Lucca",
]
SHORTEST, LONGEST = 4, 7  # rides that a task takes at least, and can be done in
RIDES = 12  # after so many the traveller is cut off
SIDE = 20  # of the square in which the cities lie
MAX_TOKENS = 48  # of a reply; a call of the tool is about 25
CALL = '<tool_call>\n{"name": "ride", "arguments": {"to": "'
GREED = 0.25  # how often the scripted model does not look beyond the next ride
SYSTEM = "You are a travel agent. You ride trains until the traveller has arrived."
ONE_WAY = ("rollout, greedy", "rollout")
STRATEGIES = (*ONE_WAY, "best of n", "best-first", "mcts", "beam")


def controller(strategy: str, fanout: int) -> Controller:
    """What searches; the last four may spend about the same."""
    match strategy:
        case "best of n":
            return BestOfN(n=3 * fanout)
        case "best-first":
            return BestFirst(fanout=fanout, expansions=40, enough=1.0)
        case "mcts":
            return MCTS(simulations=40, fanout=fanout, enough=1.0)
        case "beam":
            return Beam(width=4, fanout=fanout)
        case _:
            return Rollout()


@dataclass(frozen=True)
class Effort:
    """How much a search may do.

    Args:
        fanout: samples of a node: of few trains, and models say the same again and again.
        nodes: the most nodes of one task.
    """

    fanout: int = 12
    nodes: int = 400

    def most(self, strategy: str) -> int:
        """The most replies for one task."""
        return RIDES if strategy in ONE_WAY else self.nodes


MODEST = Effort(fanout=4, nodes=40)


class Trains:
    """The world: where the traveller is and what is in the purse are all there is to know.

    A snapshot holds the map, so that every state can be stepped from, in any order.
    """

    instant: ClassVar[bool] = True

    async def reset(self, task: Task) -> State:
        """At the start."""
        return self._at({**task.meta, "rides": 0})

    async def step(self, state: State, action: Step) -> State:
        """Ride; what cannot be done is told and costs a step."""
        here = cast("dict", state.snapshot)
        if action.finish in {"length", "filter"}:
            return self._at(here, cut=True)
        if not action.tool_calls:
            return self._at(here, cut=True)  # it gave up before it arrived
        results = []
        for call in action.tool_calls:
            asked = (
                validated(_ride(here), call.arguments) if call.name == "ride" else "no such tool"
            )
            if isinstance(asked, dict):
                price = here["trains"][here["city"]][asked["to"]]
                here = {**here, "city": asked["to"], "coins": here["coins"] - price}
            here = {**here, "rides": here["rides"] + 1}
            results.append(self._told(here) if isinstance(asked, dict) else f"Error: {asked}")
            if here["city"] == here["goal"]:
                break
        results += ["The journey is over."] * (len(action.tool_calls) - len(results))
        return self._at(here, results=tuple(results))

    def _at(self, here: dict, results: tuple[str, ...] = (), *, cut: bool = False) -> State:
        arrived = here["city"] == here["goal"]
        stuck = not _rides(here) or here["rides"] >= RIDES
        return State(
            here,
            observation="" if results else self._told(here),
            results=results,
            reward=float(arrived),
            done=arrived,
            cut=cut or (stuck and not arrived),
            answer=here["city"] if arrived else None,
            tools=(_ride(here),),
        )

    def _told(self, here: dict) -> str:
        if here["city"] == here["goal"]:
            return f"You have arrived in {here['city']}."
        trains = [
            f"{city} ({price} coins; then {_distance(here, city):.0f} miles from {here['goal']})"
            for city, price in sorted(_rides(here).items())
        ]
        return (
            f"You are in {here['city']} with {here['coins']} coins. "
            f"Trains that you can pay go to: {', '.join(trains) or 'nowhere'}."
        )


def _ride(here: Mapping) -> Tool:
    """The tool, which offers the trains that can be taken here and paid."""
    cities = sorted(_rides(here)) or [here["city"]]
    return Tool(
        "ride",
        "Take a train from the city where you are.",
        {
            "type": "object",
            "properties": {"to": {"type": "string", "enum": cities}},
            "required": ["to"],
        },
    )


def _rides(here: Mapping) -> dict[str, int]:
    """Where one can go from here, and what it costs."""
    prices = here["trains"][here["city"]]
    return {city: price for city, price in prices.items() if price <= here["coins"]}


def _distance(here: Mapping, city: str) -> float:
    return math.dist(here["places"][city], here["places"][here["goal"]])


def promising(node: Node) -> Verdict:
    """The verifier: how near the goal is, and nothing where the purse cannot pay that far.

    A ride costs at least a coin a mile, so what it gives up is lost for sure; that a city leads
    nowhere it does not see before it is there.
    """
    here = cast("Mapping", node.state.snapshot)
    left = _distance(here, here["city"])
    lost = node.state.cut or left > here["coins"]
    return Verdict(0.0 if lost else 1 / (1 + left / SIDE), detail="lost" if lost else "")


def journey(seed: int) -> Task:
    """A task that can be done, and in which the nearest next city always leads astray."""
    draws = random.Random(seed)  # noqa: S311  (no secret)
    while True:
        places = {city: [draws.randrange(SIDE + 1), draws.randrange(SIDE + 1)] for city in CITIES}
        if len(set(map(tuple, places.values()))) < len(places):
            continue
        trains = {
            city: {
                to: math.ceil(math.dist(places[city], places[to])) + draws.randrange(3)
                for to in sorted(
                    draws.sample([c for c in CITIES if c != city], draws.choice((1, 2, 2, 3)))
                )
            }
            for city in CITIES
        }
        start, goal = draws.sample(CITIES, 2)
        here = {"trains": trains, "places": places, "city": start, "goal": goal}
        price = cheapest(here, LONGEST)
        if price is None or cheapest(here, SHORTEST - 1) is not None:
            continue
        here["coins"] = price + draws.randrange(4)
        if not nearest(here):
            prompt = f"Bring me from {start} to {goal}. I have {here['coins']} coins."
            return Task(prompt, meta=json.loads(json.dumps(here)))


def cheapest(here: Mapping, rides: int) -> int | None:
    """The least price of a journey of at most so many rides; None where there is none."""
    prices = {here["city"]: 0}
    best = None
    for _ in range(rides):
        after: dict[str, int] = {}
        for city, paid in prices.items():
            for to, price in here["trains"][city].items():
                after[to] = min(after.get(to, paid + price), paid + price)
        prices = after
        if here["goal"] in prices:
            best = min(prices[here["goal"]], best if best is not None else math.inf)
    return best


def nearest(here: Mapping) -> bool:
    """Whether one arrives by always riding to the city that is nearest to the goal."""
    now = dict(here)
    for _ in range(RIDES):
        rides = _rides(now)
        if now["city"] == now["goal"] or not rides:
            break
        city = min(rides, key=lambda to: (round(_distance(now, to)), to))
        now |= {"city": city, "coins": now["coins"] - rides[city]}
    return now["city"] == now["goal"]


def scripted(request: Request, seed: int) -> str:
    """A model that reads where it may go, and mostly goes nearest to the goal."""
    heard = next(m.content for m in reversed(request.messages) if "coins. Trains" in m.content)
    trains = [
        (int(miles), city)
        for city, miles in re.findall(r"(\w+) \(\d+ coins; then (\d+) miles", heard)
    ]
    if not trains:
        return "I cannot go on."
    trains.sort()
    draws = random.Random(seed)  # noqa: S311  (no secret)
    greedy = request.sampling.temperature == 0 or draws.random() < GREED
    city = trains[0][1] if greedy else draws.choice(trains)[1]
    if any("Action:" in message.content for message in request.messages):
        return f"Thought: On to {city}.\nAction: ride[{city}]"
    call = json.dumps({"name": "ride", "arguments": {"to": city}})
    return f"<tool_call>\n{call}\n</tool_call>".removeprefix(request.so_far)


def agent(model: Backend, protocol: str, temperature: float) -> Chat:
    """The policy: the same model and prompt for every strategy."""
    asked = {
        "backend": model,
        "system": SYSTEM,
        "sampling": Sampling(temperature=temperature),
        "max_tokens": MAX_TOKENS,
    }
    if protocol == "react":
        return ReAct(**asked)
    # A small model rather talks than calls: each reply begins with the call, up to the city.
    prefill = CALL if protocol == "text" else ""
    return ToolUser(**asked, protocol=protocol, prefill=prefill, stop=("</tool_call>",))


async def travel(
    model: Backend,
    task: Task,
    strategy: str,
    *,
    protocol: str = "text",
    effort: Effort = Effort(),
    seed: int = 0,
) -> Answer:
    """One task with one strategy."""
    return await solve(
        task,
        policy=agent(model, protocol, 0.0 if strategy == "rollout, greedy" else 0.8),
        controller=controller(strategy, effort.fanout),
        environment=Trains(),
        verifier=Function(promising),
        budget=Budget(nodes=effort.nodes),
        horizon=RIDES,
        unique="states" if strategy in {"best-first", "mcts", "beam"} else None,
        seed=seed,
    )


async def report(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The table: how many travellers arrive, and what it costs."""
    default = MODEST if options.model else Effort()
    effort = Effort(options.fanout or default.fanout, options.nodes or default.nodes)
    strategies = options.strategies or (STRATEGIES[:4] if options.model else STRATEGIES)
    tasks = [journey(i) for i in range(options.tasks)]
    most = len(tasks) * sum(map(effort.most, strategies))
    arrived = []
    async with AsyncExitStack() as stack:
        model: Backend = Scripted(scripted)
        if options.model:
            model = await stack.enter_async_context(HF(model=options.model).open())
        print(
            f"At most {most} replies of at most {MAX_TOKENS} tokens, mostly about half of that.\n"
        )
        print(f"{'':16} arrived   95% interval   nodes/task  tokens/task")
        for strategy in strategies:
            ways = [
                travel(
                    model,
                    task,
                    strategy,
                    protocol=options.protocol,
                    effort=effort,
                    seed=options.seed,
                )
                for task in tasks
            ]
            answers = await asyncio.gather(*ways)  # side by side, so that the engine can batch
            right = sum(answer.node.finished for answer in answers)
            low, high = wilson(right, len(answers))
            nodes = sum(sum(1 for _ in answer.root.walk()) - 1 for answer in answers)
            tokens = sum(answer.usage.completion for answer in answers)
            print(
                f"{strategy:16} {right:3}/{len(answers):<3}   {low:5.2f} - {high:4.2f}   "
                f"{nodes / len(answers):10.1f}  {tokens / len(answers):11.0f}",
                flush=True,
            )
            arrived.append((strategy, right))
    return arrived


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, int]]:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a local model; a scripted one where it is left out")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--protocol", choices=("text", "native", "react"), default="text")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES)
    parser.add_argument("--fanout", type=int, help="samples of a node; 12, or 4 with a model")
    parser.add_argument("--nodes", type=int, help="the most for a task; 400, or 40 with a model")
    parser.add_argument("--seed", type=int, default=0)
    return asyncio.run(report(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
