"""The command line. Each verb parses its arguments, calls one public function and shows what that returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from eckart.cli._run import print_json, running

__all__ = ["main"]

app = typer.Typer(
    name="eckart",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="The singular value decomposition for deep learning: compress trained models and see what that costs.",
    epilog="Start with: eckart compress MODEL --keep 0.8 --data train.txt --evaluate test.txt -o OUT",
)

Json = Annotated[bool, typer.Option("--json", help="Print strict JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Device = Annotated[Optional[str], typer.Option(help="Where to compute: cpu, cuda (not verified), …")]  # noqa: UP045
ModelPath = Annotated[
    str, typer.Argument(help="Hugging Face folder or hub id, a .gguf or an .onnx file.", show_default=False)
]
Data = Annotated[
    Optional[list[Path]],  # noqa: UP045  typer reads the annotation at run time
    typer.Option(
        help="UTF-8 text to calibrate on, like what the model is for; may be repeated. Of an .onnx file, its inputs in "
        ".npy or .npz."
    ),
]
Evaluate = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(help="UTF-8 text to measure on, not used for calibration; may be repeated."),
]
Keep = Annotated[Optional[float], typer.Option(help="Fraction of all parameters to keep, above 0 and at most 1.")]  # noqa: UP045
Size = Annotated[Optional[str], typer.Option(help="Or the largest size of the weight files, as 300MB or 1.5GiB.")]  # noqa: UP045
MaxLossIncrease = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Or the most that may be lost, as predicted, in nats a token for a language model, at the least cost."
    ),
]
Cost = Annotated[
    Literal["params", "bytes", "ms"],
    typer.Option(help="What --keep counts, or a given loss leaves least of; ms: time measured here, --size may join."),
]
Workload = Annotated[
    Literal["prefill", "decode", "both"],
    typer.Option(help="With --cost ms, whose time: 256 tokens at once, one token more, or half each."),
]
Method = Annotated[
    str,
    typer.Option(
        help="auto, two-sided, input, plain; a published baseline: fwsvd, asvd, svd-llm, svd-llm-update, svd-llm-v2, "
        "mpifa, basis-sharing, kfac, lems, drop-layers, slicegpt; or int8: round every layer and truncate none, "
        "without --keep."
    ),
]
Loss = Annotated[
    Literal["auto", "next-token", "outputs"],
    typer.Option(
        help="What two-sided and kfac keep small; outputs: their mean squared change, for models without labels."
    ),
]
Correct = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--correct/--no-correct", help="Fit factors anew, block by block, to what the compressed blocks let through."
    ),
]
Storage = Annotated[
    Literal["auto", "pair", "pifa", "shared"],
    typer.Option(
        help="Of a factored layer: a pair of factors, or k of its rows and the rest's coefficients; shared: of either, "
        "or of one pair for all layers that read the same input, what is best."
    ),
]
Layers = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Layer names to change: shell patterns, or re:…; a leading ! excludes. May be repeated."),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Of the saved weights; default: the source's. Several, as float16,int8: each layer takes the best, what "
        "stays the first; where bytes are counted, int8 is one by default."
    ),
]
Tokens = Annotated[int, typer.Option(min=2, help="Calibration tokens.")]
Context = Annotated[int, typer.Option(min=2, help="Tokens a piece of text; perplexity depends on it.")]
EvaluateTokens = Annotated[
    Optional[list[int]],  # noqa: UP045
    typer.Option(help="Tokens to evaluate on: one number, or one for each --evaluate.", show_default="4096"),
]
Calibration = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Keep the truncated layers in this folder, for other sizes of this model.", show_default=False),
]
Workers = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Processes that factorise layers, or the address of a Dask scheduler; default: threads."),
]
Seed = Annotated[int, typer.Option(help="Of whatever is drawn at random.")]


@app.command(epilog="Example: eckart compress org/model --keep 0.8 --data train.txt --evaluate test.txt -o small")
def compress(
    model: ModelPath,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="New folder, or .onnx file, for the compressed model.", show_default=False),
    ],
    keep: Keep = None,
    size: Size = None,
    max_loss_increase: MaxLossIncrease = None,
    cost: Cost = "params",
    workload: Workload = "both",
    plan: Annotated[Optional[Path], typer.Option(help="Use the ranks of this plan, instead of --keep.")] = None,  # noqa: UP045
    data: Data = None,
    evaluate: Evaluate = None,
    method: Method = "auto",
    loss: Loss = "auto",
    correct: Correct = None,
    storage: Storage = "auto",
    layers: Layers = None,
    dtype: Dtype = None,
    format: Annotated[Literal["factored", "dense"], typer.Option(help="dense: for any loader; saves no space.")] = (
        "factored"
    ),
    recover: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='Then train so long towards the dense model: minutes, or "400 steps".', show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run towards --out was interrupted.")] = False,
    beside: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Another model to measure in the same run; may be repeated."),
    ] = None,
    calibration: Calibration = None,
    tokens: Tokens = 8192,
    context: Context = 512,
    evaluate_tokens: EvaluateTokens = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, as 5GB or 800MiB.")] = "5GB",
    device: Device = None,
    workers: Workers = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a trained model smaller, save it, reload it in a fresh process and measure it beside the dense one."""
    import eckart
    from eckart._progress import progress_shown
    from eckart.cli._show import command_line, show_comparison, show_plan
    from eckart.models._networks import is_network

    with running(as_json=json):
        with progress_shown(quiet=quiet) as progress:
            small = eckart.compress(
                model,
                keep,
                size=size,
                max_loss_increase=max_loss_increase,
                cost=cost,
                workload=workload,
                plan=plan,
                data=data,
                evaluate=evaluate,
                beside=beside or (),
                method=method,
                loss=loss,
                correct=correct,
                storage=storage,
                layers=layers or "*",
                dtype=dtype,
                format=format,
                recover=recover,
                out=out,
                resume=resume,
                calibration=calibration,
                tokens=tokens,
                context=context,
                evaluate_tokens=evaluate_tokens or 4096,
                max_shard_size=max_shard_size,
                device=device,
                workers=int(workers) if workers and workers.isdecimal() else workers,
                command="" if is_network(model) else command_line(),  # of a network nothing is compared
                progress=progress,
                seed=seed,
            )
        if small.measurement is None or is_network(model):
            show_plan(small.plan, as_json=json, saved=small)
        else:
            show_comparison(small.measurement, as_json=json, report=out / "report.html")


@app.command(epilog="Example: eckart plan org/model --keep 0.8 --data train.txt -o plan.json")
def plan(
    model: ModelPath,
    keep: Keep = None,
    size: Size = None,
    max_loss_increase: MaxLossIncrease = None,
    cost: Cost = "params",
    workload: Workload = "both",
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="File for the plan, to edit and use.")] = None,  # noqa: UP045
    data: Data = None,
    method: Method = "auto",
    loss: Loss = "auto",
    correct: Correct = None,
    storage: Storage = "auto",
    layers: Layers = None,
    dtype: Dtype = None,
    calibration: Calibration = None,
    tokens: Tokens = 8192,
    context: Context = 512,
    device: Device = None,
    workers: Workers = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what compress would do to every layer, with exact parameters and bytes, and change nothing."""
    import eckart
    from eckart._progress import progress_shown
    from eckart.cli._show import show_plan

    with running(as_json=json):
        with progress_shown(quiet=quiet) as progress:
            made = eckart.plan(
                model,
                keep,
                size=size,
                max_loss_increase=max_loss_increase,
                cost=cost,
                workload=workload,
                data=data,
                method=method,
                loss=loss,
                correct=correct,
                storage=storage,
                layers=layers or "*",
                dtype=dtype,
                calibration=calibration,
                tokens=tokens,
                context=context,
                device=device,
                workers=int(workers) if workers and workers.isdecimal() else workers,
                progress=progress,
                seed=seed,
            )
        if out is not None:
            made.save(out)
        show_plan(made, as_json=json)


@app.command(epilog="Example: eckart compare org/model small --evaluate test.txt --report report.html")
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Two or more models; the first is the baseline.", show_default=False)
    ],
    evaluate: Evaluate = None,
    evaluate_tokens: EvaluateTokens = None,
    context: Context = 512,
    speed: Annotated[bool, typer.Option(help="Time prefill and decode, in turns.")] = True,
    report: Annotated[Optional[Path], typer.Option(help="Write a self-contained HTML report here.")] = None,  # noqa: UP045
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put models beside each other: parameters, bytes, perplexity, divergence and speed."""
    import eckart
    from eckart._progress import progress_shown
    from eckart.cli._show import command_line, show_comparison
    from eckart.errors import UsageError

    with running(as_json=json):
        if len(models) < 2:
            raise UsageError("compare takes two models or more", fix="eckart compare DENSE COMPRESSED")
        with progress_shown(quiet=quiet) as progress:
            measurement = eckart.measure(
                models[1:],
                baseline=models[0],
                data=evaluate,
                tokens=evaluate_tokens or 4096,
                context=context,
                speed=speed,
                device=device,
                seed=seed,
                command=command_line(),
                progress=progress,
            )
        show_comparison(measurement.to_json(), as_json=json, report=report)


@app.command(epilog="Example: eckart report small/eckart_measurement.json -o report.html")
def report(
    result: Annotated[Path, typer.Argument(help="JSON of compare or compress.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.", show_default=False)],
    json: Json = False,
) -> None:
    """Show a saved result again and write its self-contained HTML report."""
    from eckart.cli._show import show_comparison
    from eckart.report import read_result

    with running(as_json=json):
        show_comparison(read_result(result), as_json=json, report=out)


@app.command(epilog="Example: eckart inspect model.gguf --json")
def inspect(
    model: Annotated[
        str, typer.Argument(help="Folder, hub id in the cache, .safetensors or .gguf.", show_default=False)
    ],
    sort: Annotated[Literal["name", "params"], typer.Option(help="Order of the matrices.")] = "params",
    limit: Annotated[int, typer.Option(min=0, help="Matrices to show; 0 shows all.")] = 20,
    json: Json = False,
) -> None:
    """Show what a model holds and what could be compressed, from its headers alone: no tensor is read."""
    from eckart.cli._inspect import inspection_shown
    from eckart.models._inspect import inspect as look

    with running(as_json=json):
        found = look(model)
        if json:
            print_json(found.to_json())
        else:
            inspection_shown(found, sort=sort, limit=limit)


@app.command(epilog="Example: eckart svd data.npy -k 10 -o svd.npz")
def svd(
    matrix: Annotated[Path, typer.Argument(help=".npy, or sparse .npz of SciPy.", show_default=False)],
    k: Annotated[Optional[int], typer.Option("-k", help="Singular values wanted; default: all.")] = None,  # noqa: UP045
    error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Instead of -k: as few as leave out at most this part of the Frobenius norm."),
    ] = None,
    tol: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Largest residual, as a part of s_1; default: working precision."),
    ] = None,
    center: Annotated[bool, typer.Option("--center", help="Take the mean off every column.")] = False,
    method: Annotated[str, typer.Option(help="auto, or a row of the choice table in docs/svd.md.")] = "auto",
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="New .npz file for SVD.load.")] = None,  # noqa: UP045
    values_only: Annotated[
        bool, typer.Option("--values-only", help="Print the singular values, nothing else.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a matrix from a file: singular values, and bounds on what they leave out."""
    import eckart
    from eckart._files import refuse_existing
    from eckart._progress import progress_shown
    from eckart.cli._matrix import read_array
    from eckart.cli._show import show_svd

    with running(as_json=json):
        if out is not None:
            refuse_existing(out)
        with progress_shown(quiet=quiet) as progress:
            found = eckart.svd(
                read_array(matrix),
                k,
                tol=tol,
                error=error,
                center=center,
                method=method,
                seed=seed,
                progress=progress,
            )
        if out is not None:
            found.save(out)
        show_svd(found, as_json=json, values_only=values_only, saved=out)


@app.command(epilog="Example: eckart rank data.npy")
def rank(
    matrix: Annotated[
        Path, typer.Argument(help=".npy, sparse .npz, or an SVD that eckart saved (.npz).", show_default=False)
    ],
    rule: Annotated[str, typer.Option(help="auto, evbmf, gavish-donoho, whitened, parallel, or energy.")] = "auto",
    energy: Annotated[Optional[float], typer.Option(help="Part of the squared norm to keep, 0 to 1.")] = None,  # noqa: UP045
    noise: Annotated[Optional[float], typer.Option(help="Standard deviation of white noise, if known.")] = None,  # noqa: UP045
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Say how many components of a matrix stand out of its noise, and why."""
    import eckart
    from eckart.cli._matrix import read_matrix

    with running(as_json=json):
        found = eckart.choose_rank(read_matrix(matrix), rule=rule, energy=energy, noise=noise, seed=seed)
        if json:
            print_json(found.as_dict())
        else:
            print(found)
            print(found.reason, file=sys.stderr)


@app.command(epilog="Example: eckart doctor --rate")
def doctor(
    rate: Annotated[bool, typer.Option("--rate", help="Measure this machine's float32 matrix product.")] = False,
    json: Json = False,
) -> None:
    """Show what is installed, which kernels are loaded, what works, and the command that mends what does not."""
    from eckart.cli._doctor import diagnose, diagnosis_shown

    with running(as_json=json):
        found = diagnose(rate=rate)
        if json:
            print_json(found)
        else:
            diagnosis_shown(found)


def main() -> None:
    """Run the command line."""
    app()
