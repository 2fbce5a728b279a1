"""How a request's sampling is said to servers of each kind, and what is refused instead."""

import pytest

from branchwise.backends.remote.call import Caller
from branchwise.backends.remote.dialect import Dialect
from branchwise.core.config import Sampling
from branchwise.core.errors import SpecError
from branchwise.core.types import Request

OFF = {
    "top_k": -1,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "mirostat": 0,
}


def said(owner, **sampling):
    request = Request(prompt="?", sampling=Sampling(**sampling))
    body = Caller("m", Dialect(owner)).write(request, (0,)).body
    usual = {"model", "max_tokens", "seed", "prompt", "logprobs", "return_token_ids"}
    return {key: value for key, value in body.items() if key not in usual}


@pytest.mark.parametrize("owner", ["", "nobody", "vllm", "sglang", "llamacpp"])
def test_openais_own_go_to_every_server(owner):
    fields = {"temperature": 0.5, "frequency_penalty": 0.3, "presence_penalty": -0.2}
    body = said(owner, logit_bias={7: -100, 3: 2.5}, **fields)
    assert fields.items() <= body.items()
    assert body["logit_bias"] == {"3": 2.5, "7": -100.0}


def test_nothing_more_is_said_to_a_stranger():
    assert said("nobody") == {"temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_known_servers_are_told_all_that_they_take(owner):
    usual = {"temperature": 1.0, "top_p": 1.0}
    off = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    on = {"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2}
    assert said(owner) == usual | off
    assert said(owner, **on) == usual | on


def test_llama_cpp_is_told_in_its_own_words():
    usual = {"temperature": 1.0, "top_p": 1.0}
    assert said("llamacpp") == usual | OFF
    assert said(
        "llamacpp", repetition_penalty=1.2, top_n_sigma=1.5, typical_p=0.9
    ) == usual | OFF | {
        "repeat_penalty": 1.2,
        "repeat_last_n": 2**17,
        "top_n_sigma": 1.5,
        "typical_p": 0.9,
        "samplers": ["penalties", "typ_p", "top_n_sigma"],
    }
    assert said("llamacpp", mirostat=2, mirostat_tau=4.0, temperature=0.8) == usual | OFF | {
        "temperature": 0.8,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.1,
    }


def test_llama_cpp_applies_adapters_in_the_order_that_is_asked_for():
    fields = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.0}
    names = ["penalties", "temperature", "top_p"]
    assert said("llamacpp", **fields)["samplers"] == names
    order = ("top_p", "presence_penalty", "temperature")
    names = ["top_p", "penalties", "temperature"]
    assert said("llamacpp", **fields, order=order)["samplers"] == names


@pytest.mark.parametrize(
    ("owner", "field", "sampling"),
    [
        *(
            ("nobody", field, {field: value})
            for field, value in [
                ("top_k", 5),
                ("min_p", 0.1),
                ("repetition_penalty", 1.1),
                ("typical_p", 0.9),
                ("epsilon_cutoff", 0.1),
                ("eta_cutoff", 0.1),
                ("top_n_sigma", 1.0),
                ("basis_cutoff", 0.1),
                ("mirostat", 1),
            ]
        ),
        ("vllm", "typical_p", {"typical_p": 0.9}),
        ("sglang", "mirostat", {"mirostat": 2}),
        ("llamacpp", "eta_cutoff", {"eta_cutoff": 0.1}),
        ("llamacpp", "basis_cutoff", {"basis_cutoff": 0.1}),
        ("llamacpp", "top_p", {"mirostat": 2, "top_p": 0.9}),
        ("vllm", "order", {"top_p": 0.9, "temperature": 0.5, "order": ("top_p", "temperature")}),
        (
            "llamacpp",
            "order",
            {"logit_bias": {1: 1}, "top_p": 0.5, "order": ("top_p", "logit_bias")},
        ),
        (
            "llamacpp",
            "order",
            {
                "presence_penalty": 1,
                "repetition_penalty": 2,
                "order": ("presence_penalty", "repetition_penalty"),
            },
        ),
    ],
)
def test_what_a_server_may_not_heed_is_refused_by_name(owner, field, sampling):
    with pytest.raises(SpecError, match=f"not known to take `{field}`"):
        said(owner, **sampling)


def test_an_order_that_changes_nothing_is_no_order():
    order = ("top_p", "mirostat", "temperature")
    assert said("nobody", top_p=0.9, order=order) == {"temperature": 1.0, "top_p": 0.9}


def test_nothing_is_cut_at_temperature_zero_so_nothing_is_refused():
    assert said("nobody", temperature=0, eta_cutoff=0.1)["temperature"] == 0
    with pytest.raises(SpecError, match="repetition_penalty"):
        said("nobody", temperature=0, repetition_penalty=2)


def test_a_penalty_that_matters_is_never_left_out():
    dialect = Dialect("vllm")
    assert dialect.learn({"repetition_penalty": 1.3}, "repetition_penalty", "no") is None
    assert dialect.takes("repetition_penalty")
    assert dialect.learn({"repetition_penalty": 1.0}, "repetition_penalty", "no") is not None
    assert not dialect.takes("repetition_penalty")
