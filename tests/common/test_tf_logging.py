"""Claims about TensorFlow's notices."""

import os
import subprocess
import sys

from tests.conftest import ROOT
from tfgpt.common.library_warnings import is_hidden

HEADER = "0000 00:00:1795824712.471895   16465 "
NOTICES = f"""\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I{HEADER}port.cc:153] oneDNN custom operations are on. You may see slightly different numerical results
I{HEADER}cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.
2026-01-01 10:00:00.000001: I tensorflow/core/platform/cpu_feature_guard.cc:182] This TensorFlow binary is optimized
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the appropriate flags.
E{HEADER}cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)
E{HEADER}mkl_util.cc:1] oneDNN supports DT_INT32 only on platforms with AVX-512
E{HEADER}util.cc:131] oneDNN supports DT_INT64 only on platforms with AVX-512. Falling back to the default Eigen-based
W{HEADER}local_rendezvous.cc:412] Local rendezvous is aborting with status: OUT_OF_RANGE: End of sequence
\t [[{{{{node IteratorGetNext}}}}]]
W{HEADER}dataset.cc:997] Input of GeneratorDatasetOp::Dataset will not be optimized because the dataset does not
E{HEADER}base_collective_executor.cc:252] BaseCollectiveExecutor::StartAbort UNAVAILABLE: recvmsg:Connection reset
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling
:UNKNOWN:Error received from peer  {{grpc_message:"recvmsg:Connection reset by peer", grpc_status:14}}
WARNING:tensorflow:5 out of the last 5 calls to <function g at 0x7f> triggered tf.function retracing. Tracing is
"""
REAL = f"""\
E{HEADER}cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
W{HEADER}gpu_device.cc:2342] TensorFlow was not built with CUDA kernel binaries compatible with compute capability 12.0
E{HEADER}bfc_allocator.cc:1] ran out of memory
F{HEADER}tensor.cc:1] Check failed: 1 == 2 (oneDNN supports DT_INT32 only on)
UserWarning: something of Python's
\tindented
"""


def test_known_notices_are_hidden_and_real_warnings_pass():
    before = False
    for line in NOTICES.splitlines(keepends=True):
        before = is_hidden(line.encode(), before)
        assert before, line
    for line in REAL.splitlines(keepends=True):
        assert not is_hidden(line.encode(), False), line


def run(code: str, *, tensorflow: bool = False, **environment: str) -> subprocess.CompletedProcess:
    name = "import_tensorflow" if tensorflow else "hide_notices"
    modules = "from tfgpt.common.standard_streams import redirect_output\nfrom tfgpt.common.tf_logging import *"
    code = f"import logging, os, sys\n{modules}\n{name}()\n{code}"
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=inherited | environment
    )


def test_what_cpp_writes_is_filtered_to_its_last_word_and_what_python_writes_is_not():
    done = run(
        f"os.write(2, {(NOTICES + REAL + 'no end of line').encode()!r})\n"
        f"print({NOTICES.splitlines()[1]!r}, file=sys.stderr)\nos.abort()"
    )
    assert done.returncode == -6
    assert sorted(done.stderr.splitlines()) == sorted([*REAL.splitlines(), "no end of line", NOTICES.splitlines()[1]])


def test_level_0_shows_everything():
    done = run(f"os.write(2, {NOTICES.encode()!r})", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.stderr == NOTICES


def test_standard_error_may_be_closed():
    code = "from tfgpt.common.tf_logging import hide_notices; hide_notices(); print('on')"
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "{code}" 2>&-', sys.executable], capture_output=True, cwd=ROOT)
    assert done.stdout == b"on\n"


def test_a_trial_writes_its_log_and_nothing_else(tmp_path):
    log = tmp_path / "log.txt"
    done = run(
        f"redirect_output(os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT))\n"
        "print('out', flush=True)\nprint('err', file=sys.stderr)\nos.write(2, b'C++')"
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert log.read_text() == "out\nerr\nC++"


def test_tensorflow_writes_no_notices_and_its_warnings_pass():
    done = run(
        """
import tensorflow as tf
g = tf.function(lambda x: x)
for number in range(6):
    g(number)  # retraced each time
list(tf.data.Dataset.range(3))
try:
    tf.io.read_file("/no/such/file")
except tf.errors.NotFoundError:
    print("refused")
tf.get_logger().warning("real")
""",
        tensorflow=True,
    )
    assert done.stdout == "refused\n"
    assert done.stderr == "WARNING:tensorflow:real\n"


def test_without_a_home_folder_libraries_use_a_temporary_one(tmp_path):
    script = """
import os, pwd
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
from tfgpt.common.tf_logging import make_library_home
make_library_home()
import matplotlib, huggingface_hub.constants
assert os.path.isdir(os.environ['KERAS_HOME'])
print(os.listdir(), huggingface_hub.constants.HF_HOME == os.environ['KERAS_HOME'])
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "HF_HOME", "KERAS_HOME")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "[] True\n" and "emporary" not in done.stderr, done.stdout + done.stderr
