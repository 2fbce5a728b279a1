"""An open connection to a model's endpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from branchwise.backends.remote.call import Caller, Continuation, Template
from branchwise.backends.remote.continuation import continuing, find
from branchwise.backends.remote.dialect import Dialect
from branchwise.backends.remote.endpoints import Endpoint, Endpoints, Lease
from branchwise.backends.remote.faults import Fault, malformed
from branchwise.backends.remote.reply import MalformedReply, Reply, parse
from branchwise.backends.remote.retry import Clock, Deadline, pause
from branchwise.backends.remote.samples import Samples
from branchwise.backends.remote.seeds import heeded
from branchwise.backends.remote.steps import read
from branchwise.core.aio import gather
from branchwise.core.errors import BackendError
from branchwise.core.types import Json, Request, Step

if TYPE_CHECKING:
    from branchwise.backends.openai import OpenAI

_log = logging.getLogger(__name__)

MALFORMED_TRIES = 3
"""So often may one call be answered with something else: a wrong address stays wrong."""


class OpenAIBackend:
    """An open connection to a model's endpoints; see `OpenAI`.

    Attributes:
        continuation: how answers are continued here.
        notes: what the server does differently than asked, each finding once.
    """

    def __init__(self, spec: OpenAI, endpoints: Endpoints, clock: Clock) -> None:
        self.notes: list[str] = []
        self._spec = spec
        self._endpoints = endpoints
        self._clock = clock
        self._caller = Caller(spec.model, Dialect())

    @property
    def name(self) -> str:
        """The model and how its answers are continued; not where it is served."""
        template = self._spec.template if self.continuation == "completions" else None
        digest = f":{template.digest}" if template is not None else ""
        return f"openai:{self._spec.model}:{self.continuation}{digest}"

    @property
    def continuation(self) -> Continuation:
        """How answers that have begun are continued."""
        return self._caller.continuation

    async def complete(self, request: Request) -> Sequence[Step]:
        """One step for each seed of the request, in order.

        One call asks for all samples where the server can do that. Its seed is the first one; the
        server derives the others.

        Raises:
            BackendError: a call failed after its retries; `arrived` holds what others brought.
            SpecError: the request asks for what no server can do.
        """
        return await self._ask(self._caller, request)

    async def meet(self) -> None:
        """See who is there, how answers are continued, and whether seeds are heeded."""
        endpoints = self._endpoints.all
        owners = await gather(self._owner, endpoints)
        gone = [endpoint.last for endpoint in endpoints if endpoint.last is not None]
        if len(gone) == len(endpoints):
            raise gone[0]
        for error in gone:
            self._note(f"{error.message}: the other endpoints take its load")
        dialect = Dialect(next((owner for owner in owners if owner), ""))
        mode = self._spec.continuation
        caller = Caller(
            self._spec.model,
            dialect,
            "prompt" if mode == "auto" else mode,
            self._spec.template or Template(),
        )
        if mode == "auto":
            caller = await find(self._ask, caller, self._spec.template)
            if caller.continuation == "prompt":
                self._note("the server cannot continue an answer: the model is asked to go on")
        elif mode == "continue_final_message":
            found = await continuing(self._ask, caller)
            if found is None:
                raise BackendError(
                    f"{endpoints[0].client.url} does not continue a final message",
                    hint='set `continuation = "auto"`',
                    fatal=True,
                )
            caller = found
        probed = mode in {"auto", "continue_final_message"}
        # Who was told that the server refuses seeds knows that already.
        if probed and caller.dialect.takes("seed") and not await heeded(self._ask, caller):
            self._note("the server ignores seeds: equal calls differ; a journal still replays")
        self._caller = caller

    def _note(self, finding: str) -> None:
        if finding not in self.notes:
            self.notes.append(finding)
            _log.warning("%s: %s", self._spec.model, finding)

    async def _owner(self, endpoint: Endpoint) -> str:
        """Who serves there; empty where the endpoint does not say or is not there."""
        try:
            return await endpoint.client.owner(seconds=self._spec.connect)
        except Fault as fault:
            if fault.error.status == 401:  # noqa: PLR2004  (HTTP's own number)
                raise fault.error from fault
            if fault.kind == "gone":
                endpoint.last = fault.error
            return ""

    async def _ask(self, caller: Caller, request: Request) -> list[Step]:
        """One step for each seed of the request."""
        samples = Samples(len(request.seeds))
        await self._fill(samples, caller, request, range(len(request.seeds)))
        return samples.all()

    async def _fill(
        self, samples: Samples, caller: Caller, request: Request, places: range
    ) -> None:
        """Ask for the samples of these places; a call that fails ends no other one."""
        most = caller.dialect.at_once(request)
        if len(places) > most:
            calls = [places[i : i + most] for i in range(0, len(places), most)]
            await gather(lambda part: self._fill(samples, caller, request, part), calls)
            return
        seeds = request.seeds[places.start : places.stop]
        try:
            steps = await self._call(samples, caller, request, seeds)
        except BackendError as error:
            samples.failed(error)
            return
        samples.put(places.start, steps[: len(places)])
        if len(steps) > len(places):
            self._note("the server gives more samples than asked for: the rest is dropped")
        if len(steps) < len(places):
            if (finding := caller.dialect.gives(len(steps))) is not None:
                self._note(finding)
            # Where the next call begins is the same as if all had been known from the start.
            await self._fill(samples, caller, request, places[len(steps) :])

    async def _call(
        self, samples: Samples, caller: Caller, request: Request, seeds: tuple[int, ...]
    ) -> list[Step]:
        """One call with its retries: what a server gives for these seeds."""
        deadline = Deadline(self._clock, self._spec.deadline)
        tries = malformed_tries = 0
        last: Endpoint | None = None
        while True:
            call = caller.write(request, seeds[: caller.dialect.at_once(request)])
            sent = caller.dialect.spoken(call.body)
            async with self._endpoints.slot(deadline, avoid=last) as lease:
                if samples.fatal is not None:  # a call that was sent before may still be answered
                    raise samples.fatal
                outcome = await self._try(lease, call.path, sent, deadline)
            if not isinstance(outcome, Fault):
                reply, seconds = outcome
                return read(
                    reply,
                    request,
                    said=call.said,
                    seconds=seconds,
                    prices=self._spec.prices,
                    note=self._note,
                )
            if outcome.kind == "final":
                if not self._learns(caller, request, seeds, sent, outcome):
                    raise outcome.error from outcome
                continue
            last = lease.endpoint
            tries += 1
            malformed_tries += outcome.kind == "malformed"
            wait = self._wait(last, tries, outcome)
            over = malformed_tries == MALFORMED_TRIES or wait >= deadline.left
            if over or samples.fatal is not None:
                raise outcome.error from outcome
            _log.info("%s: try %d failed: %s", self._spec.model, tries, outcome.error.message)
            if wait:
                await self._clock.sleep(wait)

    async def _try(
        self, lease: Lease, path: str, body: Mapping[str, Json], deadline: Deadline
    ) -> tuple[Reply, float] | Fault:
        """One HTTP request: the reply and its seconds, or what went wrong."""
        endpoint, began = lease.endpoint, self._clock.now()
        seconds = min(self._spec.attempt, max(0.0, deadline.left))
        try:
            content = await endpoint.client.post(path, body, seconds=seconds)
            self._endpoints.answered(lease)
            reply = parse(content)
        except MalformedReply as error:
            return malformed(endpoint.client.url, str(error))
        except Fault as fault:
            if fault.kind == "final":
                self._endpoints.answered(lease)
            else:
                self._endpoints.failed(lease, fault)
            return fault
        self._recognise(endpoint, reply)
        return reply, self._clock.now() - began

    def _wait(self, endpoint: Endpoint, tries: int, fault: Fault) -> float:
        """Seconds to the next try: none on the first round past endpoints that are up."""
        if tries < len(self._endpoints.all) and self._endpoints.others_awake(endpoint):
            return 0.0
        return pause(tries, fault.asked, self._clock.jitter())

    def _learns(
        self,
        caller: Caller,
        request: Request,
        seeds: tuple[int, ...],
        sent: dict[str, Json],
        fault: Fault,
    ) -> bool:
        """Whether the call is to be sent in another form after a refusal."""
        if fault.error.status not in {400, 422}:
            return False
        finding = caller.dialect.learn(sent, fault.param, fault.error.message)
        if finding is not None:
            self._note(finding)
        # Another request may have been taught the same meanwhile.
        call = caller.write(request, seeds[: caller.dialect.at_once(request)])
        return caller.dialect.spoken(call.body) != sent

    def _recognise(self, endpoint: Endpoint, reply: Reply) -> None:
        url, before = endpoint.client.url, endpoint.model
        if before is not None and reply.model not in {None, before}:
            self._note(f"{url} now serves {reply.model!r} instead of {before!r}")
        elif endpoint.fingerprint is not None and reply.system_fingerprint not in {
            None,
            endpoint.fingerprint,
        }:
            self._note(f"{url} changed its fingerprint: answers before and after may differ")
        endpoint.model = reply.model or before
        endpoint.fingerprint = reply.system_fingerprint or endpoint.fingerprint
