"""Compiles the training step of a configuration for TPU chips that are not there, and says what fits.

    scripts/tpu_compile.sh --flagfile=configs/tpu_gpt2_124m_v5e.cfg --chips=v5e,v6e --largest --json=results.json

Runs in a separate environment (jax and libtpu, no TensorFlow; `tpu_compile.sh` makes it). `tpu_export_step.py`
writes the step as StableHLO with the Python of tfgpt; libtpu, Google's own TPU compiler, compiles it ahead of time for
the chip's topology and says what it would need: COMPILED FOR TPU, NOT RUN ON ONE. There is no time in these results.

For each chip a card is printed:

- arguments: the weights, slots, averages and counters, whose buffers the new values take over, and the batch;
- temporaries: all else that the program holds at its worst moment: gradients, activations, logits;
- program: its machine code, which lies in the chip's memory too;
- limit: what libtpu lets a program use; larger programs are refused by the compiler.

--largest looks for the most rows of a micro-batch with which the compiler accepts the program, by bisection between a
size that fits and one that does not, to about an eighth. Accumulation makes any batch from micro-batches of that size.

Operations are the compiler's for the first chip. It counts a loop's body once, so they are taken from steps without one
(one micro-batch of one row, logits in one piece) of one and of two layers, extended to all layers, which are alike, and
grow with the tokens. A result is kept in --cache under the program's hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GIB = 1 << 30

CHIPS: dict[str, dict[str, Any]] = {
    # One host for libtpu; HBM in GiB, peak bfloat16 FLOP/s: cloud.google.com/tpu/docs/v4, …/v5e, …/v5p, …/v6e.
    # A v4 chip has two cores, by libtpu's default two devices with half the memory each; "megacore" makes them one.
    "v4": {"topology": "v4:2x2x1", "chip_config": "megacore", "memory_gib": 32, "peak_flops": 275e12},
    "v4core": {"topology": "v4:2x2x1", "chip_config": "default", "memory_gib": 16, "peak_flops": 137.5e12},
    "v5e": {"topology": "v5e:2x2", "chip_config": "default", "memory_gib": 16, "peak_flops": 197e12},
    "v5p": {"topology": "v5p:2x2x1", "chip_config": "default", "memory_gib": 95, "peak_flops": 459e12},
    "v6e": {"topology": "v6e:2x2", "chip_config": "default", "memory_gib": 32, "peak_flops": 918e12},
}
LARGEST_ROWS = 4096


def main() -> int:
    """Prints the cards, and at the end one line of JSON; returns 1 when a given size does not fit a chip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS), help=f"which (default: {','.join(CHIPS)})")
    parser.add_argument("--rows", type=int, help="rows of one chip's micro-batch (default: the configuration's)")
    parser.add_argument("--micro_batches", type=int, help="micro-batches of a step (default: the configuration's)")
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 2, 4), help="chips that sum gradients")
    parser.add_argument("--largest", action="store_true", help="also find the largest micro-batch that fits")
    parser.add_argument("--no_flops", action="store_true", help="do not count operations (one compilation less)")
    parser.add_argument("--json", type=Path, help="file for the results, a list of objects")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "tfgpt" / "tpu_compile")
    parser.add_argument("--python", default="python3", help="the Python that has tfgpt and TensorFlow")
    options, flags = parser.parse_known_args()
    unknown = [chip for chip in options.chips.split(",") if chip not in CHIPS]
    if unknown:
        print(f"tpu_compile: --chips: {unknown[0]!r} is not one of {', '.join(CHIPS)}", file=sys.stderr)
        return 2
    step = Step(flags, options)
    results = []
    for chip in options.chips.split(","):
        result = examine(step, chip, options)
        print(card(result), flush=True)
        results.append(result)
        if options.json:
            lines = ",\n".join(map(json.dumps, results))
            part = options.json.with_name(f"{options.json.name}.part")
            part.write_text(f"[\n{lines}\n]\n")
            part.replace(options.json)
    print(json.dumps(results))
    return 0 if all(result["fits"] for result in results) else 1


class Step:
    """A configuration's step at any size, exported and compiled when asked for, each once.

    Args:
        flags: of tfgpt.train.
        options: the command line's.
    """

    def __init__(self, flags: list[str], options: argparse.Namespace):
        self.flags, self.options = flags, options
        self.flops: float | None = None
        self.exporter = [options.python, str(Path(__file__).with_name("tpu_export_step.py"))]

    def exported(self, rows: int | None, micro_batches: int | None, *more: str) -> tuple[bytes, dict[str, Any]]:
        """StableHLO and facts of the step with `rows` rows in each of `micro_batches`; None: as configured."""
        work = self.options.cache / f"export-{os.getpid()}"
        work.mkdir(parents=True, exist_ok=True)
        out = work / "step.mlirbc"
        command = [*self.exporter, f"--out={out}", f"--replicas={self.options.replicas}", *self.flags, *more]
        command += [] if rows is None else [f"--rows={rows}"]
        command += [] if micro_batches is None else [f"--micro_batches={micro_batches}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "JAX_PLATFORMS": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit("\n".join(done.stderr.strip().splitlines()[-3:]))
        program, facts = out.read_bytes(), json.loads(out.with_suffix(".json").read_text())
        for file in (out, out.with_suffix(".json"), work):
            file.rmdir() if file.is_dir() else file.unlink()
        return program, facts

    def compiled(self, chip: str, rows: int | None, micro_batches: int | None, *more: str) -> dict[str, Any]:
        """The facts of the exported step and what the compiler says of it for a chip."""
        program, facts = self.exported(rows, micro_batches, *more)
        version = installed_version("libtpu")
        key = hashlib.sha256(program).hexdigest()[:24]
        kept = self.options.cache / f"{chip}-{self.options.replicas}-{version}-{key}.json"
        if kept.exists():
            said = json.loads(kept.read_text())
        else:
            said = compile_for(program, chip, self.options.replicas)
            kept.write_text(json.dumps(said))
        say(f"{chip}: {facts['rows']} rows x {facts['micro_batches']}: {words(said)}")
        return {**facts, **said, "chip": chip, "libtpu": version}

    def flops_per_token(self, chip: str, layers: int) -> float:
        """Operations for a token, the update's share included, as the compiler counts them for the first chip asked."""
        if self.flops is None:
            whole = "--cross_entropy_chunk_tokens=1048576"
            one, two = (self.compiled(chip, 1, 1, whole, f"--num_layers={count}") for count in (1, 2))
            if not (one["fits"] and two["fits"]):
                sys.exit(f"tpu_compile: not even two layers fit {chip}: no operations counted; see --no_flops")
            self.flops = (one["flops"] + (layers - 1) * (two["flops"] - one["flops"])) / one["tokens"]
        return self.flops


def compile_for(program: bytes, chip: str, replicas: int) -> dict[str, Any]:
    """Compiles a program with libtpu.

    Returns:
        "fits", "compile_seconds"; if it fits "argument_bytes", "temporary_bytes", "output_bytes" (those that take over
        no argument's buffer), "program_bytes", "total_bytes", "flops", "bytes_accessed" and the all-reduces; else
        "total_bytes" and "limit_bytes" as the refusal names them.
    """
    jax_environment()
    import numpy as np
    from jax._src.interpreters import mlir as jax_mlir
    from jax._src.lib import xla_client
    from jax.experimental import topologies
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    context = jax_mlir.make_ir_context()
    with context:
        module = stablehlo.deserialize_portable_artifact(context, program)
        drop_copies(module, ir)
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip]["topology"], chip_config_name=CHIPS[chip]["chip_config"]
    )
    devices = tuple(topology.devices[:replicas])
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    started = time.monotonic()
    try:
        with context:
            executable = devices[0].client.compile(module, xla_client.DeviceList(devices), options)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        total, limit = refused_sizes(str(error))
        said = {"fits": False, "total_bytes": total, "limit_bytes": limit, "refusal": str(error)[:300]}
        return {**said, "compile_seconds": round(time.monotonic() - started, 1)}
    memory, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    # The text is read only where it matters: jaxlib cannot parse every program that libtpu makes.
    text = executable.hlo_modules()[0].to_string() if replicas > 1 else ""
    reduces = re.findall(r"^.* = (.*) all-reduce(?:-start)?\(", text, re.MULTILINE)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": outputs,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    return {
        "fits": True,
        **parts,
        "total_bytes": sum(parts.values()),
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "all_reduces": len(reduces),
        "all_reduced_bytes": sum(shape_bytes(shapes) for shapes in reduces),
        "compile_seconds": round(time.monotonic() - started, 1),
    }


def refused_sizes(message: str) -> tuple[int | None, int | None]:
    """Bytes that a refused program needs and that it may use, as the compiler's message says; None: it does not."""
    size = r"([\d.]+)([KMG])"
    found = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", message
    )
    if found is None:
        return None, None
    total, limit = (int(float(found[place]) * 1024.0 ** (1 + "KMG".index(found[place + 1]))) for place in (1, 3))
    return total, limit


def jax_environment() -> None:
    """Tells jax and libtpu that there is no TPU and no metadata server."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Its lock file keeps a second process off the chips; there are none.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)


def drop_copies(module: Any, ir: Any) -> None:
    """Removes `mhlo.copy`, TensorFlow's mark on the buffers of variables: StableHLO has no such operation."""
    copies = []

    def visit(operation: Any) -> Any:
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for operation in copies:
        operation.results[0].replace_all_uses_with(operation.operands[0])
        operation.erase()


def shape_bytes(shapes: str) -> int:
    """Bytes of HLO shapes: "f32[2,3]{1,0}, bf16[4]" → 32."""
    sizes = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
    total = 0
    for kind, numbers in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes):
        count = 1
        for number in filter(None, numbers.split(",")):
            count *= int(number)
        total += sizes.get(kind, 0) * count
    return total


def installed_version(package: str) -> str:
    """A package's version here."""
    from importlib import metadata

    return metadata.version(package)


def examine(step: Step, chip: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for about a chip; the facts of the configured size, `largest_rows`, `flops_per_token`."""
    result = step.compiled(chip, options.rows, options.micro_batches)
    if not options.no_flops:
        result["flops_per_token"] = step.flops_per_token(chip, result["layers"])
        result["step_flops"] = result["flops_per_token"] * result["tokens"]
    if options.largest:
        result["largest"] = largest(step, chip, result)
    return result


def largest(step: Step, chip: str, first: dict[str, Any]) -> dict[str, Any] | None:
    """The result with the most rows of a micro-batch that fits, to about an eighth; None: not even one does."""
    micro_batches = first["micro_batches"]
    known = {first["rows"]: first}
    while True:
        fitting = [rows for rows, result in known.items() if result["fits"]]
        refused = [rows for rows, result in known.items() if not result["fits"]]
        low, high = max(fitting, default=0), min(refused, default=LARGEST_ROWS + 1)
        if high - low <= max(1, low // 8):
            return known.get(low)
        rows = guess(known, low, high)
        known[rows] = step.compiled(chip, rows, micro_batches)


def guess(known: dict[int, dict[str, Any]], low: int, high: int) -> int:
    """The next size to try: where a line through the two largest known totals meets the limit, else doubled or halved.

    Args:
        known: results by rows.
        low: the most rows known to fit, or 0.
        high: the fewest known not to fit, or more than can be.
    """
    middle = low * 2 if high > LARGEST_ROWS else (low + high) // 2
    sizes = sorted(rows for rows, result in known.items() if result["total_bytes"])[-2:]
    if len(sizes) == 2:
        (a, b), limit = sizes, memory_limit(known)
        slope = (known[b]["total_bytes"] - known[a]["total_bytes"]) / (b - a)
        if slope > 0 and limit:
            meets = int(b + (limit - known[b]["total_bytes"]) / slope)
            step = max(1, low // 16)
            if low + step <= meets < high:
                return min(meets, high - 1)
    return max(low + 1, min(middle, high - 1))


def memory_limit(known: dict[int, dict[str, Any]]) -> float:
    """Returns the limit that the compiler named, or the chip's memory."""
    named = [result["limit_bytes"] for result in known.values() if result.get("limit_bytes")]
    chips = [CHIPS[result["chip"]]["memory_gib"] * GIB * 0.98 for result in known.values()]
    return max(named or chips)


def card(result: dict[str, Any]) -> str:
    """Returns a result as text."""
    chip = CHIPS[result["chip"]]
    lines = [
        f"== TPU {result['chip']} ({chip['memory_gib']} GiB a chip), libtpu {result['libtpu']}: compiled, not run ==",
        f"  parameters      {result['parameters'] / 1e6:,.1f} M, {result['optimizer']}, {result['dtype']}"
        f"{', rematerialized' if result['rematerialize'] else ''}",
        f"  batch of a chip {result['micro_batches']} x {result['rows']} rows of {result['sequence_length']} tokens",
    ]
    lines += memory_lines(result)
    if "step_flops" in result:
        share = result["step_flops"] / result["model_flops"]
        lines.append(
            f"  operations      {result['step_flops'] / 1e12:.2f} TFLOP a step, {share:.2f} of PaLM's count; "
            f"at the chip's peak {result['step_flops'] / chip['peak_flops'] * 1e3:.0f} ms"
        )
    if result.get("all_reduces"):
        lines.append(
            f"  all-reduce      {result['all_reduces']} over {result['replicas']} chips, "
            f"{result['all_reduced_bytes'] / 1e6:,.1f} MB"
        )
    if "largest" in result:
        largest = result["largest"]
        lines.append(
            "  largest         not even one row fits"
            if largest is None
            else f"  largest         {largest['rows']} rows of a micro-batch: {words(largest)}"
        )
    return "\n".join(lines)


def memory_lines(result: dict[str, Any]) -> list[str]:
    """The card's lines about memory."""
    if not result["fits"]:
        return [f"  memory          {words(result)}"]
    gib = {name: result[f"{name}_bytes"] / GIB for name in ("argument", "temporary", "output", "program", "total")}
    return [
        f"  memory          {gib['total']:.2f} GiB: arguments {gib['argument']:.2f}, temporaries "
        f"{gib['temporary']:.2f}, other outputs {gib['output']:.2f}, program {gib['program']:.2f}"
    ]


def words(result: dict[str, Any]) -> str:
    """A result's memory in a few words."""
    if result["fits"]:
        return f"fits, {result['total_bytes'] / GIB:.2f} GiB"
    if result["total_bytes"] is None:
        return f"does not fit: {result['refusal']}"
    return f"does not fit: {result['total_bytes'] / GIB:.2f} of {result['limit_bytes'] / GIB:.2f} GiB"


def say(line: str) -> None:
    """Prints a line to standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
