"""The HTTP side of a bundle, in one process: what it answers, refuses and never logs."""

import codecs
import encodings.aliases
import gzip
import importlib.util
import json
import logging
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from utils.serving.requests import MAX_BYTES, MAX_CHARACTERS, Refusal, decode_body, text_of

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")

# what urllib3 1.25 leaves in sys.meta_path warns at each module that is not found
pytestmark = pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning")
TOY = Path(__file__).parents[1] / "support" / "toy_service.py"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The toy service's module, with BentoML's folder in a temporary one."""
    home = tmp_path_factory.mktemp("bentoml")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("BENTOML_HOME", str(home))
        spec = importlib.util.spec_from_file_location("toy_service", TOY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "toy_service", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def service(toy: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "root.txt").write_text("Root", encoding="utf-8")
    made = toy.ToyService()
    made.artifacts.get("classifier").pack(tmp_path)
    return made


def ask(service: Any, *bodies: bytes, api: str = "predict", **headers: str) -> list[Any]:
    """Send bodies as one micro-batch and return the responses."""
    from bentoml.types import HTTPRequest

    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    requests = [HTTPRequest(pairs, body) for body in bodies]
    return list(service.get_inference_api(api).handle_batch_request(requests))


def document(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


REFUSED = {
    "no text": (b"{}", 400),
    "list": (b"[]", 400),
    "string": (b'"text"', 400),
    "not JSON": (b"text", 400),
    "nothing": (b"", 400),
    "null": (b'{"text": null}', 400),
    "number": (b'{"text": 3}', 400),
    "boolean": (b'{"text": true}', 400),
    "list of texts": (b'{"text": ["a"]}', 400),
    "empty text": (b'{"text": ""}', 400),
    "white space": (b'{"text": " \\n\\u3000"}', 400),
    "lone surrogate": (b'{"text": "a \\ud83d"}', 400),
    "not UTF-8": (b'{"text": "\xe9"}', 400),
    "deep": (b"[" * 100_000, 400),
    "long number": (b'{"text": ' + b"1" * 10_000 + b"}", 400),
    "10 MB": (document("x" * 10_000_000), 413),
    "20 MB": (document("x" * 20_000_000), 413),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_fails_alone_with_one_line(service: Any, case: str) -> None:
    body, status = REFUSED[case]
    first, bad, last = ask(service, document("a b"), body, document("c d"))
    assert (first.status, last.status) == (200, 200)
    assert json.loads(first.body) == "Root\na\nb"
    assert json.loads(last.body) == "Root\nc\nd"
    assert bad.status == status
    assert bad.headers["Content-Type"].startswith("text/plain")
    assert len(bad.body) < 120
    assert "\n" not in bad.body


def test_a_batch_of_nothing_but_bad_requests_is_answered(service: Any) -> None:
    responses = ask(service, *(body for body, _ in REFUSED.values()))
    assert [response.status for response in responses] == [status for _, status in REFUSED.values()]


def test_each_response_carries_the_id_of_its_request(service: Any) -> None:
    """BentoML's failed tasks share one headers object: the last one's id would win."""
    responses = ask(service, b"{}", b"[]", document("a"), b"")
    assert len({response.headers["X-Request-Id"] for response in responses}) == 4


@pytest.mark.parametrize(
    "text", ["😀", "a", "x" * MAX_CHARACTERS, "\0", "مرحبا بالعالم", "\ufeff ."]
)
def test_any_other_text_is_answered(service: Any, text: str) -> None:
    for body in (document(text), json.dumps({"text": text}, ensure_ascii=False).encode()):
        (response,) = ask(service, body)
        assert response.status == 200
        assert json.loads(response.body).startswith("Root\n")


def test_classify_answers_path_confidence_levels_and_alternatives(service: Any) -> None:
    (response,) = ask(service, document("wool sock"), api="classify")
    assert json.loads(response.body) == {
        "request_id": response.headers["X-Request-Id"],
        "path": ["Root", "wool", "sock"],
        "confidence": 0.5,
        "levels": [
            {"name": "Root", "confidence": 1.0},
            {"name": "wool", "confidence": 0.75},
            {"name": "sock", "confidence": 0.5},
        ],
        "alternatives": [
            {"path": ["Root", "wool", "sock"], "confidence": 0.5},
            {"path": ["Root", "wool"], "confidence": 0.25},
        ],
    }


def test_an_answer_from_python_has_an_id_too(service: Any) -> None:
    (answer,) = service.classify(["a b"])
    assert len(answer["request_id"]) == 32
    assert service.predict(["a b"]) == ["Root\na\nb"]


def test_a_micro_batch_is_answered_in_one_call(service: Any) -> None:
    ask(service, *(document(str(i)) for i in range(10)))
    assert service.artifacts.classifier.batch_sizes == [10]


def test_a_text_that_the_classifier_fails_on_fails_alone(service: Any) -> None:
    bodies = [document("a"), document("crash"), document("b")]
    good, bad, other = ask(service, *bodies)
    assert [good.status, bad.status, other.status] == [200, 500, 200]
    assert "crash" not in bad.body
    assert json.loads(other.body) == "Root\nb\nb"


def test_a_request_without_the_token_fails_alone(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bentoml.types import HTTPRequest

    monkeypatch.setenv("KTT_API_TOKEN", "open sesame")
    headers = [{}, {"Authorization": "Bearer open sesame"}, {"authorization": "Bearer no"}]
    requests = [HTTPRequest(tuple(pairs.items()), document("a b")) for pairs in headers]
    api = service.get_inference_api("predict")
    first, good, last = api.handle_batch_request(requests)
    assert [first.status, good.status, last.status] == [401, 200, 401]
    assert first.headers["WWW-Authenticate"] == "Bearer"
    assert "sesame" not in first.body + last.body
    assert "WWW-Authenticate" not in good.headers


def test_a_text_over_the_limit_of_the_environment_is_refused(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTT_MAX_CHARACTERS", "3")
    good, bad = ask(service, document("a b"), document("a bc"))
    assert (good.status, bad.status) == (200, 413)
    long = document("a b") + b" " * 2000
    (bad,) = ask(service, long)
    assert (bad.status, bad.body) == (413, "The body is larger than 1060 bytes.")


def test_a_wrong_setting_ends_the_server_with_one_line(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.serving import log

    said: list[str] = []
    monkeypatch.setattr(log.log, "error", lambda form, *rest: said.append(form % rest))
    monkeypatch.setenv("KTT_MAX_CHARACTERS", "many")
    with pytest.raises(SystemExit) as ended:
        service.extend_app(None)
    assert ended.value.code == 3  # gunicorn does not try again
    assert said == ["KTT_MAX_CHARACTERS='many' is none of 1 to 1000000."]


def test_no_text_reaches_a_log(service: Any, tmp_path: Path) -> None:
    """Not even with the logging configured anew after the service was made."""
    from bentoml.utils.log import configure_logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configure_logging(logging_level=logging.DEBUG, base_log_dir=str(tmp_path / "logs"))
    try:
        ask(service, document("secret one"), b'{"text": "secret', document("crash secret"))
        logging.getLogger("bentoml.feedback").info({"text": "secret"})
        written = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    finally:
        for name in ("bentoml", "bentoml.prediction", "bentoml.feedback"):
            for handler in list(logging.getLogger(name).handlers):
                logging.getLogger(name).removeHandler(handler)
                handler.close()
    assert "RuntimeError" in written["active.log"]
    assert not any("secret" in text for text in written.values())


def test_feedback_is_closed(service: Any) -> None:
    from bentoml.configuration.containers import BentoMLContainer

    assert BentoMLContainer.config.bento_server.feedback.enabled.get() is False


def test_the_batch_time_out_leaves_room_for_a_burst_before_the_first_measurement() -> None:
    """BentoML reckons with 2 s a text and 1 s a batch then, and refuses what would take longer."""
    from utils.serving.service import MAX_BATCH, MAX_LATENCY

    assert MAX_LATENCY / 1000 > 2 * 128 + 1
    assert MAX_BATCH <= 128


def test_a_body_may_be_zipped() -> None:
    plain = document("a b")
    for body, encoding in ((plain, ""), (plain, "identity"), (gzip.compress(plain), "gzip")):
        assert text_of(decode_body(body, None, encoding)) == "a b"
    for encoding, status in (("gzip", 400), ("br", 415), ("gzip, gzip", 415)):
        with pytest.raises(Refusal) as refused:
            decode_body(plain, None, encoding)
        assert refused.value.status == status


def test_a_zipped_body_is_unpacked_no_further_than_the_limit() -> None:
    bomb = gzip.compress(bytes(10 * MAX_BYTES), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(Refusal) as refused:
        decode_body(bomb, None, "gzip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.status == 413
    assert MAX_BYTES < peak < 3 * MAX_BYTES
    with pytest.raises(Refusal) as refused:
        decode_body(b"\x1f\x8b rubbish", None, "gzip")
    assert refused.value.status == 400


ZIPPED = gzip.compress(document("a b"), mtime=0)


@pytest.mark.parametrize(
    "body",
    [
        ZIPPED[:1],
        ZIPPED[:-8],  # its checksum and length
        ZIPPED[:-1],
        ZIPPED[:-8] + b"\0" * 8,
        ZIPPED + b"x",
        ZIPPED + b"\0",
        ZIPPED + ZIPPED[:-1],
        zlib.compress(document("a b")),
        b"",
    ],
)
def test_a_zipped_body_is_whole(service: Any, body: bytes) -> None:
    """As released its beginning is answered, as if that were all."""
    (response,) = ask(service, body, Content_Encoding="gzip")
    assert response.status == 400
    assert "gzip" in response.body


def test_a_zipped_body_may_have_several_members(service: Any) -> None:
    whole = document("wool sock")
    parts = [gzip.compress(part) for part in (whole[:7], b"", whole[7:], b"")]
    (response,) = ask(service, b"".join(parts), Content_Encoding=" GZIP ")
    assert json.loads(response.body) == "Root\nwool\nsock"


READ = {
    "utf-8": "UTF-8 utf8 UTF_8 utf-8-sig",
    "utf-16": "UTF-16 utf16 utf_16",
    "utf-16-be": "UTF-16BE utf-16-be",
    "utf-16-le": "UTF-16LE utf_16_le",
    "utf-32": "utf-32 UTF32",
    "utf-32-be": "utf-32be",
    "utf-32-le": "utf-32le",
    "ascii": "ascii US-ASCII",
    "latin-1": "latin-1 latin1 ISO-8859-1 iso8859-1 ISO_8859-1 l1 cp819",
    "cp1252": "windows-1252 cp1252 CP-1252",
}


@pytest.mark.parametrize("codec", READ)
def test_a_body_may_be_in_the_usual_character_sets(service: Any, codec: str) -> None:
    text = "red wool" if codec == "ascii" else "r\xe9d w\xf6\xf6l"
    body = json.dumps({"text": text}, ensure_ascii=False).encode(codec)
    for name in READ[codec].split():
        for spelt in (f"charset={name}", f'Charset = "{name}"', f"a=b;charset={name} ;c=d"):
            (response,) = ask(service, body, Content_Type=f"application/json; {spelt}")
            assert response.status == 200, spelt
            assert json.loads(response.body).split("\n")[1:] == text.split()


OTHERS = [
    "klingon", "zip", "utf-7", "idna", "punycode", "undefined", "mbcs", "unicode_escape",
    "raw_unicode_escape", "x" * 8000, "\u212a", "utf-8\x00", "../utf-8", "utf-8 punycode",
    "utf-8; charset=latin-1", "utf-8; charset=punycode", "punycode; charset=utf-8",
    "utf-8, text/plain; charset=hex", "utf-8; charset*=utf-8''punycode",
    *sorted(set(encodings.aliases.aliases.values()) - {name.replace("-", "_") for name in READ}),
]  # fmt: skip


@pytest.mark.parametrize("charset", OTHERS)
def test_no_other_character_set_is_read(
    service: Any, monkeypatch: pytest.MonkeyPatch, charset: str
) -> None:
    """The client would choose what runs: some of Python's codecs take hours over a megabyte."""
    monkeypatch.setattr(codecs, "lookup", None)
    for body in (document("a b"), b"\xff", b""):
        (response,) = ask(service, body, Content_Type=f"application/json; charset={charset}")
        assert response.status == 415
        assert "UTF-8" in response.body
        assert len(response.body.splitlines()) == 1
        assert len(response.body) < 200


def test_a_body_that_is_not_in_its_character_set_is_refused(service: Any) -> None:
    for charset, body in (
        ("utf-8", b'{"text": "\xe9"}'),
        ("ascii", '{"text": "é"}'.encode()),
        ("utf-16", b'{"text": "a"}!'),
        ("utf-32", b'{"text": "a"}'),
        ("windows-1252", b'{"text": "\x81"}'),
    ):
        (response,) = ask(service, body, Content_Type=f"text/plain;charset={charset}")
        assert response.status == 400, charset


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    assert text_of(decode_body(b"\xef\xbb\xbf" + document("a"))) == "a"


@pytest.mark.usefixtures("toy")  # BentoML is imported without its warnings
def test_an_answer_of_numpy_numbers_is_plain_json() -> None:
    import numpy as np

    from utils.serving.service import answer_to_dict

    one = np.float32(0.5)
    answer = SimpleNamespace(
        path=("A",), confidence=one, levels=(("A", one),), alternatives=((("A",), one),)
    )
    assert json.loads(json.dumps(answer_to_dict(answer, "0f")))["confidence"] == 0.5  # type: ignore[arg-type]
