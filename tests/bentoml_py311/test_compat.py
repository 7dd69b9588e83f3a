"""bentoml 0.13.1 runs on this Python, and programs that do not use it do not pay for that."""

import logging
import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from utils.serving.local_server import free_port

PACKAGE = Path(__file__).parents[2] / "packages" / "bentoml-py311"

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")


def run(*argv: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)


def python(code: str, home: Path) -> str:
    done = run(sys.executable, "-c", code, home=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_bentoml_imports_in_a_fresh_interpreter(tmp_path: Path) -> None:
    assert python("import bentoml; print(bentoml.__version__)", tmp_path) == "0.13.1"


def test_the_plain_command_works(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("bentoml")
    done = run(str(command), "--version", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.13.1" in done.stdout


def test_headers_of_requests_stay_apart(tmp_path: Path) -> None:
    """The hash is the object's: equal headers may differ in it, nothing is shared by it."""
    code = (
        "from bentoml.types import HTTPHeaders, HTTPRequest\n"
        "a, b = HTTPHeaders.from_dict({'A': '1'}), HTTPHeaders.from_dict({'a': '1'})\n"
        "print(a == b, len({a, b}), HTTPRequest(headers=(('A', '2'),)).headers['a'])"
    )
    assert python(code, tmp_path) == "True 2 2"


def test_the_real_cloudpickle_stands_in_and_pickles_a_lambda(tmp_path: Path) -> None:
    code = (
        "import cloudpickle, pickle, bentoml.utils\n"
        "from bentoml.utils import cloudpickle as theirs\n"
        "three = pickle.loads(theirs.dumps(lambda: 3))()\n"
        "print(theirs is cloudpickle, bentoml.utils.cloudpickle is cloudpickle, three)"
    )
    assert python(code, tmp_path) == "True True 3"


def test_messages_survive_a_round_trip_with_the_fast_protobuf(tmp_path: Path) -> None:
    code = (
        "from google.protobuf.internal import api_implementation\n"
        "from bentoml.yatai.proto import deployment_pb2, repository_pb2, status_pb2\n"
        "import bentoml.yatai.proto.yatai_service_pb2\n"
        "bento = repository_pb2.BentoServiceMetadata(name='n', version='1')\n"
        "bento.apis.add(name='predict', batch=True)\n"
        "again = repository_pb2.BentoServiceMetadata.FromString(bento.SerializeToString())\n"
        "print(again == bento, again.apis[0].name, status_pb2.Status.INTERNAL,\n"
        "      deployment_pb2.DeploymentSpec.DeploymentOperator.Name(1),\n"
        "      api_implementation.Type() == 'python')"
    )
    out = python(code, tmp_path).split()
    assert out[:3] == ["True", "predict", "13"]
    assert out[-1] == "False"


def test_nothing_is_reported_unless_asked_for(tmp_path: Path) -> None:
    code = (
        "import os; os.environ.pop('BENTOML_DO_NOT_TRACK', None)\n"
        "from bentoml.utils import usage_stats\n"
        "sent = []; usage_stats._send_amplitude_event = lambda *event: sent.append(event)\n"
        "usage_stats.track('save'); print(len(sent))\n"
        "os.environ['BENTOML_DO_NOT_TRACK'] = 'False'\n"
        "usage_stats.track('save'); print(len(sent))"
    )
    assert python(code, tmp_path).split() == ["0", "1"]


def test_log_files_stay_small(tmp_path: Path) -> None:
    printed = python(
        "from bentoml.utils.log import get_logging_config_dict as configuration\n"
        "handlers = configuration('INFO', '/logs', True, True)['handlers'].values()\n"
        "sizes = [h['maxBytes'] * (1 + h['backupCount']) for h in handlers if 'filename' in h]\n"
        "print(len(sizes), sum(sizes) <= 30_000_000)",
        tmp_path,
    )
    assert printed.split() == ["3", "True"]


def test_merged_requests_pass_and_a_pickle_that_runs_code_does_not(tmp_path: Path) -> None:
    code = (
        "import os, pickle\n"
        "from bentoml.exceptions import BadInput\n"
        "from bentoml.marshal.utils import DataLoader\n"
        "from bentoml.types import HTTPRequest, HTTPResponse\n"
        "sent = (HTTPRequest((('A', 'b'),), b'body'),)\n"
        "(got,) = DataLoader.split_requests(DataLoader.merge_requests(sent))\n"
        "answer = HTTPResponse.new(400, {'C': 'd'}, 'why')\n"
        "(back,) = DataLoader.split_responses(DataLoader.merge_responses([answer]))\n"
        "print(got.body, got.headers['a'], back.status, back.headers['c'], back.body)\n"
        "class Evil:\n"
        "    def __reduce__(self): return (os.mkdir, ('evil',))\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "try: DataLoader.split_requests(pickle.dumps(Evil()))\n"
        "except BadInput as error: print(error.status_code, error)\n"
        "print(os.path.exists('evil'))"
    )
    out = python(code, tmp_path).splitlines()
    assert out[0] == "b'body' b 400 d why"
    assert out[1].startswith("400 ")
    assert "mkdir" in out[1]
    assert out[2] == "False"


def test_start_up_of_other_programs_does_not_pay(tmp_path: Path) -> None:
    """One module, imported in under 5 ms, that brings no other along."""
    costs = []
    for _ in range(3):
        done = run(sys.executable, "-X", "importtime", "-c", "pass", home=tmp_path)
        match = re.search(r"\| +(\d+) \| +ktt_bentoml_compat$", done.stderr, re.MULTILINE)
        assert match, "the .pth file is not in site-packages"
        costs.append(int(match[1]))
    assert min(costs) < 5000  # microseconds, with everything that it imports
    code = "import sys; print(*sorted(n for n in sys.modules if 'ktt_bentoml' in n))"
    assert python(code, tmp_path) == "ktt_bentoml_compat"


def test_nothing_heavy_is_imported_at_start_up(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "print(*({'bentoml', 'google.protobuf', 'cloudpickle', 'ast', 'importlib.util'}\n"
        "        & set(sys.modules)))"
    )
    loaded = set(python(code, tmp_path).split())
    done = run(sys.executable, "-S", "-c", code, home=tmp_path)
    # what plain start-up or another package's .pth file brings is not ours
    assert loaded - set(done.stdout.split()) <= {"importlib.util"}


def test_another_bentoml_module_is_left_to_the_usual_finders() -> None:
    import ktt_bentoml_compat

    for name in ("json", "bentoml", "bentoml.service", "bentomlx.types"):
        assert ktt_bentoml_compat.BentoMLFinder.find_spec(name) is None
    before = list(sys.meta_path)
    ktt_bentoml_compat.install()
    assert sys.meta_path == before


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_carries_the_pth_file_at_its_top(tmp_path: Path) -> None:
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)),
        str(PACKAGE),
        home=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "ktt-bentoml-compat.pth" in names
    assert "ktt_bentoml_compat/repairs.py" in names


def _cores(root: Path, own: str) -> list[float]:
    from ktt_bentoml_compat.cores import quotas

    (root / "own").write_text(own, encoding="utf-8")
    return list(quotas(root, root / "own"))


def test_the_tightest_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    for folder, limit in (("", "max 100000"), ("a", "150000 100000"), ("a/b", "400000 100000")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(f"{limit}\n", encoding="ascii")
    assert sorted(_cores(tmp_path, "0::/a/b\n")) == [1.5, 4.0]
    assert _cores(tmp_path, "0::/\n") == []
    assert _cores(tmp_path, "0::/gone/deep\n") == []


def test_the_quota_of_the_first_kind_of_control_group_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n", encoding="ascii")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n", encoding="ascii")
    assert _cores(tmp_path, "4:cpu,cpuacct:/\n3:cpuset:/\n") == [2.5]
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n", encoding="ascii")
    assert _cores(tmp_path, "4:cpu,cpuacct:/\n") == []


@pytest.mark.parametrize(
    ("cores", "threads", "workers", "expected"),
    [
        ("4", "", None, (4, "1")),
        ("4", "2", None, (2, "2")),
        ("4", "", 2, (2, "2")),
        ("1", "", 3, (3, "1")),
        ("2", "8", None, (1, "8")),
    ],
)
def test_workers_and_threads_follow_from_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    cores: str,
    threads: str,
    workers: int | None,
    expected: tuple[int, str],
) -> None:
    from ktt_bentoml_compat.servers import share_cores

    monkeypatch.setenv("KTT_CORES", cores)
    monkeypatch.setenv("KTT_THREADS", threads)
    monkeypatch.setenv("RAYON_NUM_THREADS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert (share_cores(workers), os.environ["KTT_THREADS"]) == expected
    assert os.environ["RAYON_NUM_THREADS"] == expected[1]
    assert os.environ["OMP_NUM_THREADS"] == "7"  # as asked for


def test_a_number_of_cores_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from ktt_bentoml_compat.servers import share_cores

    for wrong in ("0", "-1", "two", "1.5", "²", " ", "99999", "1" * 5000):
        for variable in ("KTT_CORES", "KTT_THREADS"):
            monkeypatch.setenv(variable, wrong)
            with pytest.raises(SystemExit) as stopped:
                share_cores(None)
            assert str(stopped.value).startswith(f"Error: {variable}=")
            monkeypatch.delenv(variable)


def test_a_port_that_cannot_be_had_is_one_line_before_anything_is_started() -> None:
    from ktt_bentoml_compat.servers import check_port

    port = free_port()  # which nobody else is given while this test goes on
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        for asked, said in (
            (port, f"Port {port} is in use. Give another"),
            (70_000, "70000 is no"),
        ):
            with pytest.raises(SystemExit) as stopped:
                check_port(asked)
            assert str(stopped.value).startswith(f"Error: {said}")
    check_port(free_port())
    check_port(None)


def test_a_folder_without_a_bundle_is_one_line_before_anything_is_started(tmp_path: Path) -> None:
    from ktt_bentoml_compat.servers import improve

    started: list[object] = []
    names = ("start_dev_server", "start_prod_server", "_start_dev_proxy", "_start_prod_proxy")
    module: dict[str, Any] = {name: lambda *_, **__: started.append(1) for name in names}
    improve(module)
    (tmp_path / "empty").mkdir()
    (tmp_path / "system" / "inference").mkdir(parents=True)
    (tmp_path / "system" / "inference" / "bentoml.yml").write_text("")
    for name in names[:2]:
        for folder, said in (("empty", "folder"), ("system", str(tmp_path / "system/inference"))):
            with pytest.raises(SystemExit) as stopped:
                module[name](str(tmp_path / folder), port=free_port())
            text = str(stopped.value)
            assert text.startswith(f"Error: {tmp_path / folder} holds no bundle")
            assert said in text
            assert "\n" not in text
    assert not started


def test_nothing_is_started_on_a_port_in_use() -> None:
    from ktt_bentoml_compat.servers import improve

    started: list[object] = []
    names = ("start_dev_server", "start_prod_server", "_start_dev_proxy", "_start_prod_proxy")
    module: dict[str, Any] = {name: lambda **_: started.append(1) for name in names}
    improve(module)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        for name in names[:2]:
            with pytest.raises(SystemExit):
                module[name](port=taken.getsockname()[1])
    assert not started


def test_what_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    contents = (b"", b"metadata: [", b"version: 1\nkind: x\n", b"\xff\0")
    for number, damaged in enumerate(contents):
        (tmp_path / f"damaged{number}").mkdir()
        (tmp_path / f"damaged{number}" / "bentoml.yml").write_bytes(damaged)
    code = (
        f"import os, bentoml; os.chdir({str(tmp_path)!r})\n"
        "from ktt_bentoml_compat.servers import check_bundle\n"
        "for folder in ('', 'empty', 'none', *(f'damaged{number}' for number in range(4))):\n"
        "    try:\n"
        "        check_bundle(folder)\n"
        "    except SystemExit as stopped:\n"
        "        print(stopped)"
    )
    lines = python(code, tmp_path).splitlines()
    assert [line.startswith("Error: ") for line in lines] == [True] * 7
    assert ["holds no bundle" in line for line in lines] == [True] * 3 + [False] * 4
    assert "damaged0" in lines[0]  # which is in it
    assert ["bentoml.yml is damaged" in line for line in lines] == [False] * 3 + [True] * 4


def test_batches_that_nothing_fits_are_one_line() -> None:
    from ktt_bentoml_compat.servers import check_batches

    for name in ("mb_max_batch_size", "mb_max_latency"):
        for fine in (None, 0, 1):
            check_batches({name: fine})
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} -1 "):
            check_batches({name: -1})


def test_a_bundle_that_cannot_be_loaded_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ktt_bentoml_compat import servers

    monkeypatch.setattr(servers, "log", logging.getLogger("test of loading"))
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended, servers._loading():
        raise ValueError("a damaged\nfile")
    assert ended.value.code == 3  # gunicorn does not try again
    assert caplog.messages == ["The bundle cannot be loaded (ValueError): a damaged file"]
    assert not caplog.records[0].exc_info


def test_who_is_told_to_leave_while_loading_leaves_without_an_error(tmp_path: Path) -> None:
    """An exception would be taken for one of what is imported, as here."""
    code = (
        "import os, signal, sys\n"
        "from ktt_bentoml_compat import processes\n"
        "signal.signal(signal.SIGQUIT, lambda *_: sys.exit(0))\n"
        "with processes.leaving_at_once():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGQUIT)\n"
        "        print('goes on')\n"
        "    except BaseException:\n"
        "        print('damaged')\n"
        "print('loaded')"
    )
    assert python(code, tmp_path) == ""


def test_services_of_one_home_folder_count_apart(tmp_path: Path) -> None:
    code = (
        "import os, bentoml\n"
        "from pathlib import Path\n"
        "from ktt_bentoml_compat.servers import METRICS_FOLDER, prepare_metrics_folder\n"
        "counts = []\n"
        "for port in (5000, 5001, 5000):\n"
        "    prepare_metrics_folder(port)\n"
        "    counts.append(Path(os.environ[METRICS_FOLDER]) / f'counter_{len(counts)}.db')\n"
        "    counts[-1].touch()\n"
        "print(*(count.exists() for count in counts))"
    )
    assert python(code, tmp_path) == "False True True"


def test_a_clock_that_is_set_neither_holds_nor_refuses_requests(tmp_path: Path) -> None:
    code = (
        "import asyncio, time\n"
        "from bentoml.marshal.dispatcher import CorkDispatcher\n"
        "real, ahead = time.time, 0\n"
        "time.time = lambda: real() + ahead\n"
        "async def answer(batch):\n"
        "    await asyncio.sleep(0.02)\n"
        "    return batch\n"
        "async def main():\n"
        "    global ahead\n"
        "    ask = CorkDispatcher(300_000, 64)(answer)\n"
        "    for step in (0, 0, 0, 0, 86_400, -172_800, 0):\n"
        "        first = asyncio.ensure_future(ask(1))\n"
        "        await asyncio.sleep(0.01)\n"
        "        waiting = [asyncio.ensure_future(ask(number)) for number in (2, 3)]\n"
        "        await asyncio.sleep(0)\n"
        "        ahead += step\n"
        "        print(await asyncio.wait_for(asyncio.gather(first, *waiting), 10))\n"
        "asyncio.run(main())"
    )
    assert python(code, tmp_path).splitlines() == ["[1, 2, 3]"] * 7


def test_a_service_may_extend_the_application_and_need_not(tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import bentoml\n"
        "from bentoml.server.api_server import BentoAPIServer\n"
        "class Plain(bentoml.BentoService): pass\n"
        "class More(Plain):\n"
        "    def extend_app(self, app): app.add_url_rule('/more', 'more', lambda: 'more')\n"
        "for kind in (Plain, More):\n"
        "    client = BentoAPIServer(kind()).app.test_client()\n"
        "    print('=', client.get('/more').status_code, client.get('/healthz').status_code)"
    )
    lines = python(code, tmp_path).splitlines()
    assert [line for line in lines if line[0] == "="] == ["= 404 200", "= 200 200"]


def test_a_killed_worker_leaves_no_gauge_behind(tmp_path: Path) -> None:
    """gunicorn's master runs `child_exit` for whatever end a worker has found."""
    (tmp_path / "gauge_livesum_77.db").touch()
    (tmp_path / "counter_77.db").touch()
    code = (
        f"import os, types; os.environ['PROMETHEUS_MULTIPROC_DIR'] = {str(tmp_path)!r}\n"
        "from bentoml.server import gunicorn_config\n"
        "gunicorn_config.child_exit(None, types.SimpleNamespace(pid=77))\n"
    )
    python(code, tmp_path)
    assert [path.name for path in tmp_path.glob("*.db")] == ["counter_77.db"]
