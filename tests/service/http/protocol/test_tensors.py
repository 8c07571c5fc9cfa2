"""Parsing inference requests and writing answers of the Open Inference Protocol."""

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from service.http.problems import Problem
from service.http.protocol.tensors import (
    TensorRequest,
    TensorSpec,
    check_codings,
    inflate,
    read_request,
    write_answer,
)

SPEC = TensorSpec(clip=(2, 3), max_clips=4, outputs=("probabilities", "attention"))
FRAMES = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

frames = np_st.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(2), st.just(3)))
blanks = st.text(" \t\r\n", max_size=2)


def request(shape: Any = (2, 2, 3), **changed: Any) -> dict[str, Any]:
    tensor = {"name": "frames", "shape": list(shape), "datatype": "UINT8", "data": FRAMES.tolist()} | changed
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def read(message: Any) -> TensorRequest:
    return read_request(json.dumps(message).encode(), None, SPEC)


def read_binary(message: Any, tail: bytes) -> TensorRequest:
    header = json.dumps(message).encode()
    return read_request(header + tail, str(len(header)), SPEC)


def refusal(body: bytes, header_length: str | None = None) -> str:
    with pytest.raises(Problem) as refused:
        read_request(body, header_length, SPEC)
    assert refused.value.code == "invalid_tensor"
    return refused.value.detail


class TestJson:
    @given(frames, st.booleans(), st.sampled_from([None, 1, 3]))
    def test_frames_are_read_from_flat_and_nested_numbers(
        self, array: npt.NDArray[np.uint8], nested: bool, indent: int | None
    ) -> None:
        data = (array if nested else array.ravel()).tolist()
        asked = read_request(json.dumps(request(array.shape, data=data), indent=indent).encode(), None, SPEC)

        assert asked.frames.dtype == np.uint8
        np.testing.assert_array_equal(asked.frames, array)

    @pytest.mark.parametrize("nested", [True, False])
    def test_arrays_longer_than_a_piece_are_read(self, nested: bool) -> None:
        spec = TensorSpec(clip=(40, 50, 50, 3), max_clips=1, outputs=("probabilities",))
        array = np.random.default_rng(0).integers(0, 256, (1, *spec.clip), np.uint8)
        message = request(array.shape, data=array if nested else array.ravel())
        asked = read_request(orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY), None, spec)

        np.testing.assert_array_equal(asked.frames, array)

    @given(st.data())
    def test_numbers_are_read_if_and_only_if_they_are_json_of_the_right_shape(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from([json.dumps(FRAMES.tolist()), json.dumps(FRAMES.ravel().tolist())]))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text) - 1))
            text = text[:at] + data.draw(st.sampled_from([*"0129,[] .e\n", "", "25"])) + text[at + 1 :]
        body = json.dumps(request(data="HERE")).replace('"HERE"', text).encode()
        expected = reference(text)
        try:
            found = read_request(body, None, SPEC).frames
        except Problem:
            assert expected is None
        else:
            assert expected is not None
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(
        "text",
        ["[[[0,1,]2,[3,4,5]],[[6,7,8],[9,1,2]]]", "[[[0,1,2],3[,4,5]],[[6,7,8],[9,1,2]]]", "0[,1,2,3,4,5,6,7,8,9,1,2]"],
    )
    def test_a_number_on_the_wrong_side_of_a_bracket_is_refused(self, text: str) -> None:
        refusal(json.dumps(request(data="HERE")).replace('"HERE"', text).encode())

    def test_much_whitespace_between_numbers_is_refused(self) -> None:
        body = json.dumps(request()).replace("10,", "10," + 2**18 * " ").encode()

        assert "more than a number" in refusal(body)

    def test_the_order_of_the_fields_does_not_matter(self) -> None:
        message = {
            "inputs": [{"data": FRAMES.ravel().tolist(), "datatype": "UINT8", "shape": [2, 2, 3], "name": "frames"}]
        }

        np.testing.assert_array_equal(read(message | {"id": "after"}).frames, FRAMES)

    def test_unknown_fields_are_ignored(self) -> None:
        message = request(quality="good") | {"priority": 3, "parameters": {"priority": 5}}

        np.testing.assert_array_equal(read(message).frames, FRAMES)

    @pytest.mark.parametrize(
        "message",
        [
            # KServe's `InferenceRequest.model_dump_json()`.
            {
                "id": None,
                "parameters": None,
                "inputs": [request()["inputs"][0] | {"parameters": None}],
                "outputs": None,
            },
            # MLServer's.
            {
                "id": None,
                "parameters": {"content_type": None, "headers": None},
                "inputs": [request()["inputs"][0] | {"parameters": {"content_type": "np", "headers": None}}],
                "outputs": [{"name": "attention", "parameters": None}],
            },
            # Go's `json.Marshal` of structs whose fields were not set.
            {
                "id": "",
                "parameters": None,
                "inputs": [
                    request()["inputs"][0] | {"parameters": {"binary_data_size": None, "shared_memory_region": None}}
                ],
                "outputs": [{"name": "attention", "parameters": {"binary_data": None, "classification": None}}],
            },
        ],
    )
    def test_null_fields_and_parameters_are_absent(self, message: dict[str, Any]) -> None:
        asked = read(message)

        np.testing.assert_array_equal(asked.frames, FRAMES)
        assert asked.timeout_s is None
        assert set(asked.outputs.values()) == {False}

    def test_null_data_is_absent_beside_bytes(self) -> None:
        message = request(data=None, parameters={"binary_data_size": 12})
        message["inputs"][0]["data"] = None

        np.testing.assert_array_equal(read_binary(message, FRAMES.tobytes()).frames, FRAMES)

    @pytest.mark.parametrize(("timeout", "seconds"), [(250_000, 0.25), (1, 1e-6), (0, None), (None, None)])
    def test_the_timeout_is_in_microseconds(self, timeout: int | None, seconds: float | None) -> None:
        assert read(request() | {"parameters": {"timeout": timeout}}).timeout_s == seconds

    @pytest.mark.parametrize("timeout", [-1, 1.5, "1000", True, 2**63, [1]])
    def test_timeouts_that_are_not_microseconds_are_refused(self, timeout: Any) -> None:
        assert "`timeout`" in refusal(json.dumps(request() | {"parameters": {"timeout": timeout}}).encode())

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ([], "JSON"),
            ({}, "inputs"),
            ({"inputs": []}, "inputs are none; send exactly one, `frames`"),
            ({"inputs": request()["inputs"] * 2}, "JSON"),
            (request(name="pixels"), "`pixels`"),
            (request(name=5), "name"),
            (request(datatype="FP32"), "FP32"),
            (request(shape=[2, 3]), "[clips, 2, 3]"),
            (request(shape=[]), "shape"),
            (request(shape=[0, 2, 3]), "0 clips"),
            (request(shape=[-1, 2, 3]), "-1 clips"),
            (request(shape=[5, 2, 3]), "1 to 4"),
            (request(shape=[2**80, 2, 3]), "shape"),
            (request(shape=[1] * 100_000), "shape"),
            (request(name="x" * 100_000), "name"),
            (request(shape=["2", 2, 3]), "shape"),
            (request(shape=[True, 2, 3]), "shape"),
            (request(shape=[1, 2, 3]), "flat or nested"),
            (request(data=None), "neither"),
            (request(data="AAAA"), "data"),
            (request(data=True), "neither"),
            (request(data=[256] * 12), "0 to 255"),
            (request(data=[1000] * 12), "0 to 255"),
            (request(data=[-1] * 12), "as its shape requires"),
            (request(data=[1.0] * 12), "as its shape requires"),
            (request(data=[]), "as its shape requires"),
            (request(parameters={"shared_memory_region": "x"}), "shared memory"),
            (request(parameters=[]), "parameters"),
            (request() | {"id": 7}, "id"),
            (request() | {"id": "x" * 1025}, "id"),
            (request() | {"outputs": [{"name": "labels"}]}, "`labels`"),
            (request() | {"outputs": [{"name": "attention"}] * 2}, "twice"),
            (request() | {"outputs": [{"name": "attention", "parameters": {"classification": 3}}]}, "classification"),
            (request() | {"outputs": [{"name": "attention", "parameters": {"binary_data": 1}}]}, "true or false"),
            (request() | {"parameters": {"binary_data_output": "yes"}}, "true or false"),
        ],
    )
    def test_a_request_that_does_not_match_the_model_is_refused(self, message: Any, reason: str) -> None:
        assert reason in refusal(json.dumps(message).encode())

    @pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"inputs": [{"data": [1, 2'])
    def test_a_body_that_is_not_json_is_refused(self, body: bytes) -> None:
        assert "JSON" in refusal(body)

    @pytest.mark.parametrize("clips", [1, 17, 2**20, 2**62])
    @pytest.mark.parametrize("data", ["[]", "[1]", "[[[[[1]]]]]", "[" * 1000, "[" + "1," * 1000 + "1]"])
    def test_memory_depends_on_the_body_and_not_on_the_shape(self, clips: int, data: str) -> None:
        spec = TensorSpec(clip=(40, 224, 224, 3), max_clips=2**62, outputs=("probabilities",))
        body = json.dumps(request((clips, *spec.clip), data="HERE")).replace('"HERE"', data).encode()
        tracemalloc.start()
        with pytest.raises(Problem):
            read_request(body, None, spec)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert most < 100_000

    @pytest.mark.parametrize("many", [{"x": [[]] * 5000}, {"parameters": {str(n): 1 for n in range(5000)}}])
    def test_json_with_thousands_of_fields_is_refused(self, many: dict[str, Any]) -> None:
        body = json.dumps(request() | many).encode()

        assert "fields" in refusal(body)
        assert "fields" in refusal(body, str(len(body)))

    def test_json_beyond_the_size_limit_is_refused(self) -> None:
        assert "the JSON exceeds" in refusal(json.dumps(request() | {"x": [[]] * 400_000}).encode())

    @pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1e999", "NaN"])
    @pytest.mark.parametrize("field", [{"shape": ["HERE", 2, 3]}, {"parameters": {"binary_data_size": "HERE"}}])
    def test_huge_numbers_in_shapes_and_parameters_are_refused_briefly(
        self, field: dict[str, Any], number: str
    ) -> None:
        assert len(refusal(json.dumps(request(**field)).replace('"HERE"', number).encode())) < 1000

    @given(st.binary())
    def test_any_other_bytes_are_refused(self, body: bytes) -> None:
        refusal(body)


def reference(text: str) -> npt.NDArray[np.uint8] | None:
    """Parse the text with Python's parser; None unless it has the shape of ``FRAMES`` and values of a byte."""
    try:
        array = np.array(json.loads(text))
    except ValueError:
        return None
    if array.shape not in {FRAMES.shape, (FRAMES.size,)} or array.dtype.kind != "i" or not (array < 256).all():
        return None
    return array.reshape(FRAMES.shape).astype(np.uint8)


class TestBinary:
    def test_frames_are_read_from_the_bytes_after_the_json(self) -> None:
        asked = read_binary(request(data=None, parameters={"binary_data_size": 12}), FRAMES.tobytes())

        np.testing.assert_array_equal(asked.frames, FRAMES)

    @pytest.mark.parametrize(
        ("parameters", "tail"),
        [
            ({"binary_data_size": 12}, 11),
            ({"binary_data_size": 12}, 13),
            ({"binary_data_size": 11}, 11),
            ({"binary_data_size": 2**70}, 12),
            ({"binary_data_size": -12}, 12),
            ({"binary_data_size": "12"}, 12),
            ({"binary_data_size": 12.0}, 12),
            ({}, 12),
        ],
    )
    def test_a_number_of_bytes_that_does_not_match_the_shape_is_refused(
        self, parameters: dict[str, Any], tail: int
    ) -> None:
        header = json.dumps(request(data=None, parameters=parameters)).encode()

        assert "binary_data_size" in refusal(header + bytes(tail), str(len(header)))

    @pytest.mark.parametrize("length", ["", "-1", "1e2", "999", "9" * 5000, "٣", " 4"])
    def test_a_json_length_that_is_not_within_the_body_is_refused(self, length: str) -> None:
        assert "Inference-Header-Content-Length" in refusal(b"{}" + bytes(12), length)


class TestOutputs:
    def test_all_outputs_are_returned_if_none_is_requested(self) -> None:
        assert read(request()).outputs == {"probabilities": False, "attention": False}
        assert read(request() | {"outputs": []}).outputs == {"probabilities": False, "attention": False}

    def test_requested_outputs_keep_their_order_and_their_form(self) -> None:
        outputs = [{"name": "attention", "parameters": {"binary_data": True}}, {"name": "probabilities"}]

        asked = read(request() | {"outputs": outputs})

        assert list(asked.outputs.items()) == [("attention", True), ("probabilities", False)]

    def test_a_request_can_ask_for_all_outputs_as_bytes(self) -> None:
        outputs = [{"name": "attention", "parameters": {"binary_data": False}}, {"name": "probabilities"}]
        message = request() | {"parameters": {"binary_data_output": True}, "outputs": outputs}

        assert read(message).outputs == {"attention": False, "probabilities": True}

    def test_an_answer_contains_numbers_as_json_and_bytes_after_it(self) -> None:
        probabilities = np.array([[0.1, 0.9]], np.float32)
        attention = np.arange(4, dtype=np.float32).reshape(1, 2, 2)

        body, length = write_answer(
            {"probabilities": probabilities, "attention": attention},
            {"attention": True, "probabilities": False},
            model="tiny",
            version="1",
            request_id="seven",
        )

        assert orjson.loads(body[:length]) == {
            "model_name": "tiny",
            "model_version": "1",
            "id": "seven",
            "outputs": [
                {"name": "attention", "datatype": "FP32", "shape": [1, 2, 2], "parameters": {"binary_data_size": 16}},
                {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.9]},
            ],
        }
        assert body[length:] == attention.tobytes()


class TestInflate:
    @pytest.mark.parametrize(
        ("codings", "body"),
        [
            ([], b"abc"),
            (["gzip"], gzip.compress(b"abc", mtime=0)),
            (["x-gzip"], gzip.compress(b"abc", mtime=0)),
            (["deflate"], zlib.compress(b"abc")),
        ],
    )
    def test_supported_codings_are_decompressed(self, codings: list[str], body: bytes) -> None:
        check_codings(codings)

        assert inflate(body, codings, 3) == b"abc"

    @pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**20, 3_000_000])
    @pytest.mark.parametrize("random", [False, True])
    def test_bodies_longer_than_a_piece_are_decompressed(self, size: int, random: bool) -> None:
        body = np.random.default_rng(0).bytes(size) if random else bytes(size)

        assert inflate(gzip.compress(body, mtime=0), ["gzip"], size) == body

    def test_a_decompressed_body_is_given_up_at_the_limit(self) -> None:
        compressed = gzip.compress(bytes(10**8), mtime=0)
        tracemalloc.start()
        with pytest.raises(Problem, match="exceeds the limit"):
            inflate(compressed, ["gzip"], 10**6)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert most < 3 * 10**6

    @pytest.mark.parametrize(
        ("codings", "reason"),
        [
            (["br"], "encoding br is not"),
            (["zstd", "gzip"], "encoding zstd is not"),
            (["gzip", "gzip"], "compressed 2 times"),
        ],
    )
    def test_other_codings_are_refused_by_name(self, codings: list[str], reason: str) -> None:
        with pytest.raises(Problem, match=reason) as refused:
            check_codings(codings)

        assert refused.value.code == "unsupported_media"

    @pytest.mark.parametrize(
        ("encoding", "body", "code", "reason"),
        [
            ("gzip", b"abc", "invalid_tensor", "is not valid gzip"),
            ("gzip", b"", "invalid_tensor", "is truncated"),
            ("gzip", gzip.compress(b"abc", mtime=0)[:-1], "invalid_tensor", "is truncated"),
            ("gzip", gzip.compress(b"abc", mtime=0) + b"more", "invalid_tensor", "has extra bytes"),
            ("deflate", zlib.compress(bytes(10**7)), "body_too_large", "limit of 1000 bytes"),
        ],
    )
    def test_damaged_and_large_bodies_are_refused(self, encoding: str, body: bytes, code: str, reason: str) -> None:
        with pytest.raises(Problem, match=reason) as refused:
            inflate(body, [encoding], 1000)

        assert refused.value.code == code
