"""Claim on the source: modules, functions and signals that Windows lacks are used after a question for it only."""

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

MODULES = {
    "_posixsubprocess", "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline",
    "resource", "spwd", "syslog", "termios", "tty",
}  # fmt: skip
# Attribute → of which modules (Python's documentation: "Availability: Unix").
ATTRIBUTES = {
    "os": {
        "chown", "chroot", "confstr", "copy_file_range", "ctermid", "fchdir", "fchmod", "fchown", "fdatasync", "fork",
        "forkpty", "fpathconf", "fstatvfs", "get_blocking", "getegid", "geteuid", "getgid", "getgroups", "getloadavg",
        "getpgid", "getpgrp", "getpriority", "getsid", "getuid", "killpg", "lchown", "lockf", "major", "memfd_create",
        "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn",
        "pread", "preadv", "pwrite", "pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_setaffinity",
        "sched_yield", "sendfile", "setgid", "setpgid", "setpgrp", "setpriority", "setsid", "setuid", "splice",
        "statvfs", "sync", "sysconf", "tcgetpgrp", "tcsetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "waitid",
        "writev", "O_DIRECTORY", "O_DIRECT", "O_NOFOLLOW", "O_SYNC", "O_DSYNC", "O_NONBLOCK", "O_CLOEXEC", "WNOHANG",
        "WIFEXITED", "WIFSIGNALED", "WEXITSTATUS", "WTERMSIG", "RTLD_GLOBAL",
    },
    "signal": {
        "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP",
        "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGXFSZ", "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask",
        "setitimer", "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo",
    },
    # SO_REUSEADDR is there, but lets two programs have one port.
    "select": {"poll", "epoll", "kqueue", "devpoll"},
    "socket": {"AF_UNIX", "socketpair", "send_fds", "recv_fds", "SO_REUSEPORT", "SO_REUSEADDR"},
    "time": {"tzset", "clock_settime", "pthread_getcpuclockid"},
    # They would fork on Linux; `multiprocessing.get_context("spawn")` has its own.
    "multiprocessing": {"Process", "Pool"},
    "futures": {"ProcessPoolExecutor"},
    "asyncio": {"create_unix_connection", "start_unix_server"},
}  # fmt: skip
# Methods and arguments, whatever they are called of.
METHODS = {"add_signal_handler", "prctl", "send_handle"}
ARGUMENTS = {"preexec_fn", "start_new_session", "pass_fds", "process_group"}
START_METHODS = {"fork", "forkserver"}
QUESTIONS = ("sys.platform", "platform.system", "os.name", "hasattr(", "getattr(")


def asks(node: ast.AST) -> bool:
    return any(question in ast.unparse(node) for question in QUESTIONS)


def problems(source: str) -> list[str]:
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return [f"{node.lineno}: {name}" for node, name in uses(tree) if not guarded(node, parents)]


def uses(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    yield node, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            if node.module.split(".")[0] in MODULES:
                yield node, f"from {node.module} import …"
            for alias in node.names:
                if alias.name in ATTRIBUTES.get(node.module, ()):
                    yield node, f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in ATTRIBUTES.get(owner, ()) or node.attr in METHODS:
                yield node, ast.unparse(node)
        elif isinstance(node, ast.Call):
            for argument in node.keywords:
                if argument.arg in ARGUMENTS and not (isinstance(argument.value, ast.IfExp) and asks(argument.value)):
                    yield node, f"{argument.arg}="
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            first = node.args[0] if node.args else None
            if called in ("get_context", "set_start_method") and getattr(first, "value", "") in START_METHODS:
                yield node, f"{called}({ast.unparse(node.args[0])})"


def guarded(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a question for the system stands around it, or before it in its function, with a return."""
    while node in parents:
        child, node = node, parents[node]
        if isinstance(node, (ast.If, ast.IfExp, ast.While)) and child is not node.test and asks(node.test):
            return True
        if isinstance(node, ast.BoolOp) and any(asks(each) for each in node.values[: node.values.index(child)]):
            return True
        if isinstance(node, ast.Try) and child in node.body:
            caught = {name for handler in node.handlers if handler.type for name in ast.unparse(handler.type).split()}
            if any("ImportError" in name or "AttributeError" in name for name in caught):
                return True
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            before = [each for each in node.body if each.lineno < child.lineno]
            if any(
                isinstance(each, ast.If) and asks(each.test) and isinstance(each.body[-1], (ast.Return, ast.Raise))
                for each in before
            ):
                return True
    return False


def test_functions_that_windows_lacks_are_used_after_a_check_only():
    files = sorted((ROOT / "tfgpt").rglob("*.py"))
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in files
        for problem in problems(path.read_text(encoding="utf-8"))
    ]
    assert found == []
