"""The README's tables of signatures; `python -m tests.serving.test_signatures` prints them."""

from tests.conftest import ROOT
from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, sampling_values


def markdown_tables() -> str:
    lines = ["| signature | for | inputs | outputs |", "| --- | --- | --- | --- |"]
    meanings: dict[tuple[str, str, str], list[str]] = {}
    for entry in SIGNATURES:
        inputs = [tensor for tensor in entry.inputs if tensor not in SAMPLING]
        columns = ", ".join(map(str, inputs)) + (", sampling inputs" if len(inputs) < len(entry.inputs) else "")
        lines.append(f"| `{entry.name}` | {entry.purpose} | {columns} | {', '.join(map(str, entry.outputs))} |")
        for kind, tensors in (("into", inputs), ("out of", entry.outputs)):
            for tensor in tensors:
                meanings.setdefault((tensor.name, kind, tensor.meaning), []).append(entry.name)
    defaults = sampling_values(SamplingConfig())
    lines += ["", "| sampling input | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| {tensor} | {defaults[tensor.name]} | {tensor.meaning} |" for tensor in SAMPLING]
    lines += ["", "| other tensor | of | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {kind} {', '.join(names)} | {text} |" for (name, kind, text), names in meanings.items()]
    return "\n".join(lines) + "\n"


def test_the_tables_of_the_readme_are_those_of_the_code():
    assert markdown_tables() in (ROOT / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(markdown_tables())
