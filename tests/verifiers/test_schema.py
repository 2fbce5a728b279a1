import json
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from branchwise.core.aio import run_sync
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.schema import Schema

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}, "name": {"type": "string"}},
    "required": ["age"],
    "additionalProperties": False,
}


def judged(schema, answer, **fields):
    node = Node(Task("?"), State(answer=answer))
    return run_sync(Schema(json_schema=schema, **fields).score, [node])[0]


@pytest.mark.parametrize(
    ("answer", "detail", "feedback"),
    [
        ('{"age": 4}', "valid", ""),
        (' {"age": 4, "name": "Jo"}\n', "valid", ""),
        ('{"age": -1}', "invalid", "answer.age: -1 is less than the minimum of 0"),
        ("{}", "invalid", "answer: 'age' is a required property"),
        ('{"age": 1, "x": 2}', "invalid", "answer: Additional properties are not allowed ('x' was"),
        ("[]", "invalid", "answer: [] is not of type 'object'"),
        ('{"age": 4', "no JSON", "The answer is no JSON: Expecting ',' delimiter: line 1"),
        ('{"age": 4}, "name": 5', "no JSON", "The answer is no JSON: Extra data"),
        ("I do not know.", "no JSON", "The answer is no JSON"),
        ("", "no JSON", "The answer is no JSON"),
        (None, "no answer", "There is no answer."),
        ('{"age": NaN}', "no JSON", "The answer is no JSON"),
        ('{"age": 1e999}', "no JSON", "The answer is no JSON"),
        ('"\\ud800"', "no JSON", "The answer is no JSON"),
        ("[" * 100_000, "no JSON", "The answer is no JSON"),
        ("1" * 5000, "no JSON", "The answer is no JSON"),
        (" " * 1_000_001, "no JSON", "It has more than 1000000 characters."),
    ],
)
def test_what_is_wrong_is_said(answer, detail, feedback):
    said = judged(PERSON, answer)
    assert (said.score, said.detail) == (float(detail == "valid"), detail)
    assert said.feedback.startswith(feedback)
    assert bool(said.feedback) == bool(feedback)


def test_several_faults_are_told():
    told = judged(PERSON, '{"age": "x", "name": 1}').feedback
    assert (
        told == "answer.age: 'x' is not of type 'integer'; answer.name: 1 is not of type 'string'"
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)
SCHEMAS = st.sampled_from(
    [
        *({}, {"type": "array"}, {"type": ["integer", "null"]}, {"enum": [1, "a", [2]]}),
        *({"items": {"type": "integer"}}, {"not": {"type": "string"}}, {"minLength": 2}),
        {
            "$ref": "#/$defs/tree",
            "$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
        },
        {"anyOf": [{"required": ["a"]}, {"type": "integer", "minimum": 0}]},
        {"items": {"$ref": "#n"}, "$defs": {"n": {"$anchor": "n", "type": "integer"}}},
    ]
)


@given(SCHEMAS, VALUES)
def test_it_agrees_with_the_reference(schema, value):
    said = judged(schema, json.dumps(value))
    assert said.detail == ("valid" if Draft202012Validator(schema).is_valid(value) else "invalid")


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"$id": "https://example.org/s.json"},
        {"$id": "s.json"},
    ],
)
def test_references_lead_to_places_in_the_schema(schema):
    whole = {**schema, "$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert judged(whole, "[1]").score == 1
    assert judged(whole, '["a"]').feedback == "answer[0]: 'a' is not of type 'integer'"


@pytest.mark.parametrize(
    ("schema", "why"),
    [({"type": "number of sheep"}, "is not valid under"), ({"properties": 3}, "3 is not of type")],
)
def test_what_is_no_schema_is_refused(schema, why):
    with pytest.raises(ValidationError, match=f"the schema of answer is broken.*{why}"):
        Schema(json_schema=schema)


@pytest.mark.parametrize("where", ["https://example.org/x", "#/nowhere"])
def test_a_reference_to_nowhere_says_nothing_of_the_answer(where):
    said = judged({"$ref": where}, "1")
    assert isinstance(said, VerifierError)
    assert said.message.startswith("the schema of answer is broken: ")


def test_what_would_take_too_long_is_an_error():
    doubling = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**doubling, "d40": {}}}
    began = perf_counter()
    said = judged(schema, "1")
    assert perf_counter() - began < 5
    assert said.message == "the answer cannot be checked: it takes too long"


BLOCKS = 'So:\n```json\n{"age": -1}\n```\nor rather\n  ```\n{"age":\n1}\n  ```\nDone.'


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (BLOCKS, "valid"),
        ('{"age": 1}', "valid"),
        ('```json\n{"age": 1}', "no JSON"),
        ('```json\n{"age": 1}\n```\n```', "valid"),
        ('```\n{"age": 1, "name": "```x"}\n```', "valid"),
        ("```json\n" * 100_000, "no JSON"),
    ],
)
def test_of_fenced_blocks_the_last_one_counts(text, detail):
    began = perf_counter()
    assert judged(PERSON, text, fenced=True).detail == detail
    assert perf_counter() - began < 5


def test_without_that_a_fence_is_no_json():
    assert judged(PERSON, BLOCKS).detail == "no JSON"


@pytest.mark.anyio
async def test_all_of_the_text_can_be_read():
    node = Node(Task("?"), State(answer="no"), Node(Task("?"), State()), 0, Step('{"age": 1}'))
    schema = Schema(json_schema=PERSON, of="text")
    assert [v.score for v in await schema.score([node])] == [1]
    assert await schema.score([]) == []
