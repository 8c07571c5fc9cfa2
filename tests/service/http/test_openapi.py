"""The OpenAPI document: every answer is described, with an example that matches its schema."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from service.http.app import create_app
from service.http.problems import KINDS
from service.settings import Settings

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    return create_app(Settings(api_keys="a-key")).openapi()


def answers(document: Document) -> Iterator[tuple[str, str, str, Document]]:
    """Yield path, status, media type and description of every answer."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {"": {}}).items():
                    yield path, status, media_type, content


def test_every_answer_has_an_example_that_matches_its_schema(document: Document) -> None:
    for path, status, media_type, content in answers(document):
        if media_type == "application/octet-stream":
            continue  # bytes; the JSON before them is described for the other media type
        examples = [example["value"] for example in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        assert examples, f"{path} {status} {media_type}"
        schema = content["schema"] | {"components": document["components"]}
        for example in examples:
            jsonschema_rs.Draft202012Validator(schema).validate(json.loads(json.dumps(example)))


def test_requests_have_examples_that_match_their_schemas(document: Document) -> None:
    content = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]

    jsonschema_rs.Draft202012Validator(content["schema"]).validate(content["example"])


def test_pictures_of_the_frames_are_described(document: Document) -> None:
    parameters = document["paths"]["/predict"]["post"]["parameters"]
    (frames,) = (parameter for parameter in parameters if parameter["name"] == "frames")
    described = document["components"]["schemas"]["FrameAnswer"]

    assert not frames["required"]
    assert {"const": "jpeg", "type": "string"} in frames["schema"]["anyOf"]
    assert described["properties"]["jpeg"].items() >= {"type": "string", "contentMediaType": "image/jpeg"}.items()
    assert "jpeg" not in described["required"]


def test_examples_of_problems_have_the_fields_of_real_ones(document: Document) -> None:
    for path, status, media_type, content in answers(document):
        if not status.startswith("2"):
            assert media_type == "application/problem+json"
            for code, example in content["examples"].items():
                value = example["value"]
                assert (value["code"], value["status"]) == (code, int(status))
                assert KINDS[code].status == int(status)
                assert ("error" in value) == path.startswith("/v2")


def test_every_code_is_described_except_those_that_belong_to_no_operation(document: Document) -> None:
    described = {code for *_, content in answers(document) for code in content.get("examples", {})}

    assert KINDS.keys() - described == {
        "not_found", "method_not_allowed", "head_too_large", "too_many_connections", "host_not_allowed",
        "origin_not_allowed",
    }  # fmt: skip


def test_everything_except_health_and_metrics_requires_a_key(document: Document) -> None:
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            requires_key = not (path == "/metrics" or "/health/" in path)
            assert [*map(list, operation.get("security", []))] == ([["bearer"], ["header"]] if requires_key else [])
            assert ("401" in operation["responses"]) == requires_key


def test_nothing_requires_a_key_if_none_are_set() -> None:
    document = create_app(Settings()).openapi()

    assert "securitySchemes" not in document["components"]
    assert not any(
        "401" in operation["responses"] for path in document["paths"].values() for operation in path.values()
    )


def test_every_schema_is_referenced(document: Document) -> None:
    text = json.dumps(document)

    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text
