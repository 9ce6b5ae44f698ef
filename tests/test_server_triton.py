"""The model repository for Triton: its configuration parses as Triton's own message, and its loader serves.

There is no Triton here: its utilities are stood in for by the names and signatures that its Python backend documents.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format
from monograph.inference.engine import Engine
from monograph.inference.server.triton import write_repository
from monograph.ir.errors import ConfigError, MonographError
from served import tiny_decoder, tiny_encoder

pytestmark = pytest.mark.slow

TYPES = (
    "INVALID",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "STRING",
)
KINDS = ("AUTO", "GPU", "CPU", "MODEL")
MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "ModelInput": [
        ("name", 1, "string", False),
        ("data_type", 2, "DataType", False),
        ("dims", 4, "int64", True),
        ("optional", 8, "bool", False),
    ],
    "ModelOutput": [("name", 1, "string", False), ("data_type", 2, "DataType", False), ("dims", 3, "int64", True)],
    "ModelInstanceGroup": [("name", 1, "string", False), ("count", 2, "int32", False), ("kind", 4, "Kind", False)],
    "ModelParameter": [("string_value", 1, "string", False)],
    "ModelTransactionPolicy": [("decoupled", 1, "bool", False)],
    "ModelDynamicBatching": [("max_queue_delay_microseconds", 2, "uint64", False)],
    "Parameter": [("key", 1, "string", False), ("value", 2, "ModelParameter", False)],
    "ModelConfig": [
        ("name", 1, "string", False),
        ("backend", 17, "string", False),
        ("max_batch_size", 4, "int32", False),
        ("input", 5, "ModelInput", True),
        ("output", 6, "ModelOutput", True),
        ("instance_group", 7, "ModelInstanceGroup", True),
        ("parameters", 14, "Parameter", True),
        ("model_transaction_policy", 19, "ModelTransactionPolicy", False),
        ("dynamic_batching", 11, "ModelDynamicBatching", False),
    ],
}
"""The part of Triton's model_config.proto that is used: name, number, type and whether it repeats."""


def model_config() -> Any:
    """An empty ModelConfig."""
    file = descriptor_pb2.FileDescriptorProto(name="triton_config.proto", package="inference", syntax="proto3")
    scalar = {"string": 9, "int64": 3, "int32": 5, "bool": 8, "uint64": 4}
    for enum, prefix, names in (("DataType", "TYPE", TYPES), ("Kind", "KIND", KINDS)):
        made = file.enum_type.add(name=enum)
        for i, name in enumerate(names):
            made.value.add(name=f"{prefix}_{name}", number=i)
    for message, fields in MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, number, type, many in fields:
            field = made.field.add(name=name, number=number, label=3 if many else 1)
            if type in scalar:
                field.type = scalar[type]
            else:
                field.type = 14 if type in ("DataType", "Kind") else 11
                field.type_name = f".inference.{type}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class Sender:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, int]] = []
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Any, flags: int = 0) -> None:
        self.sent.append((response, flags))

    def wait(self) -> list[dict[str, Any]]:
        end = time.monotonic() + 20
        while not self.sent or self.sent[-1][1] != 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        return [{t.name: t.values for t in r.output_tensors} for r, _ in self.sent]


class Request:
    def __init__(self, **inputs: Any) -> None:
        self.inputs = {k: Tensor(k, v) for k, v in inputs.items()}
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def text(value: str) -> Any:
    return np.array([[value.encode()]], np.object_)


@pytest.fixture
def utilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """`triton_python_backend_utils`."""
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = lambda message: message
    module.InferenceResponse = lambda output_tensors, error=None: types.SimpleNamespace(
        output_tensors=output_tensors, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def loaded(model: Path) -> Any:
    """The model as Triton loads it: model.py is run, then initialized with the parsed configuration."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config())
    said = json_format.MessageToDict(config, preserving_proto_field_name=True)
    said["parameters"] = {p["key"]: p["value"] for p in said["parameters"]}
    names: dict[str, Any] = {}
    exec(compile((model / "1" / "model.py").read_text(), "model.py", "exec"), names)
    made = names["TritonPythonModel"]()
    made.initialize({"model_config": json.dumps(said), "model_repository": str(model), "model_version": "1"})
    return made


def test_a_model_that_generates(tmp_path: Path, utilities: None) -> None:
    built = tiny_decoder(tmp_path / "cat")
    model = write_repository(built, tmp_path / "repository", threads=1)
    shutil.rmtree(built)
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config())
    assert (config.name, config.backend, config.max_batch_size) == ("cat", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [(i.name, list(i.dims), i.optional) for i in config.input] == [
        ("text_input", [1], False), ("stream", [1], True), ("sampling_parameters", [1], True),
    ]  # fmt: skip
    served, offline = loaded(model), Engine.open(model / "1" / "built", threads=1)
    said = json.dumps({"max_tokens": "9", "temperature": 0})
    for stream in (False, True):
        requests = [
            Request(text_input=text(p), stream=np.array([[stream]]), sampling_parameters=text(said))
            for p in ("the cat", "a")
        ]
        assert served.execute(requests) is None
        for request, prompt in zip(requests, ("the cat", "a"), strict=True):
            parts = request.sender.wait()
            expected = offline.generate(prompt, max_new_tokens=9)
            assert b"".join(p["text_output"][0] for p in parts).decode() == expected.text
            assert [i for p in parts for i in p["token_ids"].tolist()] == expected.ids
            assert parts[-1]["finish_reason"][0].decode() == expected.reason
            assert stream or len(parts) == 1
    for bad in ("{", "[]", '{"temperature": -1}', '{"temprature": 1}', '{"max_tokens": 100000}'):
        request = Request(text_input=text("a"), sampling_parameters=text(bad))
        served.execute([request])
        request.sender.wait()
        assert request.sender.sent[0][0].error
    served.finalize()


def test_a_model_that_gives_vectors(tmp_path: Path, utilities: None) -> None:
    model = write_repository(tiny_encoder(tmp_path / "vectors"), tmp_path / "repository", name="v.1", threads=1)
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config())
    assert (config.name, config.max_batch_size, list(config.output[0].dims)) == ("v.1", 8, [32])
    served, offline = loaded(model), Engine.open(model / "1" / "built", threads=1)
    batch = np.array([[b"the cat"], [b"a"]], np.object_)
    (answer,) = served.execute([Request(text_input=batch)])
    np.testing.assert_allclose(answer.output_tensors[0].values, offline.embed(["the cat", "a"]), atol=1e-6)
    wrong, long = Request(text_input=text("the log " * 200)), Request(text_input=text("a"))
    answers = served.execute([wrong, long, Request(text_input=batch)])
    assert "64 positions" in answers[0].error
    np.testing.assert_allclose(answers[1].output_tensors[0].values, offline.embed(["a"]), atol=1e-6)
    np.testing.assert_allclose(answers[2].output_tensors[0].values, offline.embed(["the cat", "a"]), atol=1e-6)
    served.finalize()


def test_what_is_not_written(tmp_path: Path) -> None:
    built = tiny_decoder(tmp_path / "cat")
    with pytest.raises(ConfigError, match="cannot be the name of a model"):
        write_repository(built, tmp_path / "repository", name="../cat")
    with pytest.raises(ConfigError, match=r"no monograph\.json"):
        write_repository(tmp_path / "nothing", tmp_path / "repository")
    other = tmp_path / "repository" / "cat"
    other.mkdir(parents=True)
    (other / "mine.txt").write_text("mine")
    with pytest.raises(MonographError, match="no model that this wrote"):
        write_repository(built, tmp_path / "repository")
    assert (other / "mine.txt").read_text() == "mine"
