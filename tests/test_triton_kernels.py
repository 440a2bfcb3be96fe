"""On the GPU where there is one; otherwise by Triton's interpreter, on CPU tensors.

The interpreter must be chosen before anything imports Triton, so those tests run in a process of their own.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

from sae_outliers.sae import kernels, triton_kernels
from tests.conftest import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

with_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: `make test-slow` brings it, or torch for CUDA"
)
launched_elsewhere = pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="here the kernels themselves run")


def launching(test):  # type: ignore[no-untyped-def]
    elsewhere = "no CUDA GPU here: test_all_of_these_pass_under_the_interpreter runs this in another process"
    return pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason=elsewhere)(with_triton(test))


N = 50
ENTRIES_OF_ROWS = {
    "one in each": [1] * 5,
    "64 in each": [64] * 4,
    "uneven, with empty rows": [0, 3, 0, 0, 33, 16, 1, 17, 0],
    "a row of thousands": [2, 3000, 0, 1],
    "none": [0, 0, 0],
}
cases = pytest.mark.parametrize("counts", ENTRIES_OF_ROWS.values(), ids=ENTRIES_OF_ROWS.keys())
dimensions = pytest.mark.parametrize("d", [1, 24, 100, 256, 700])  # of a tile and below, between and above


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=rng, dtype=dtype).to(DEVICE)


def code_of(counts: list[int], dtype: torch.dtype = torch.float32) -> kernels.Code:
    rng = torch.Generator().manual_seed(sum(counts))
    indices = torch.randint(N, (sum(counts),), generator=rng).to(DEVICE)
    offsets = F.pad(torch.tensor(counts, device=DEVICE).cumsum(0), (1, 0))
    return kernels.Code(random(len(indices), dtype=dtype), indices, offsets)


def weighted_rows_reference(code: kernels.Code, W: Tensor) -> Tensor:
    """By way of the dense code [rows, N], in float64."""
    dense = W.new_zeros(code.tokens, N, dtype=torch.float64)
    return dense.index_put_((rows_of(code), code.indices), code.values.double(), accumulate=True) @ W.double()


def products_reference(x: Tensor, W: Tensor, code: kernels.Code) -> Tensor:
    return (x.double() @ W.double().T)[rows_of(code), code.indices]


def rows_of(code: kernels.Code) -> Tensor:
    return torch.repeat_interleave(code.offsets.diff())


def assert_agree(result: Tensor, reference: Tensor, relative: float = 1e-6) -> None:
    """A product in TF32 would be off by some 3e-4."""
    assert result.shape == reference.shape
    assert (result - reference).norm() <= relative * reference.norm()


@launching
@dimensions
@cases
def test_products_agree_with_the_dense_product(counts: list[int], d: int) -> None:
    code, x, W = code_of(counts), random(len(counts), d), random(N, d)
    assert_agree(triton_kernels.products(x, W, code.indices, code.offsets), products_reference(x, W, code))


@launching
@dimensions
@cases
def test_weighted_rows_agree_with_the_dense_product_and_empty_rows_are_zero(counts: list[int], d: int) -> None:
    code, W = code_of(counts), random(N, d)
    result = triton_kernels.weighted_rows(*code, W)
    assert_agree(result, weighted_rows_reference(code, W))
    assert result[code.offsets.diff() == 0].eq(0).all()


@launching
def test_float64_is_summed_in_float64() -> None:
    code = code_of([3, 0, 40], torch.float64)
    x, W = random(3, 300, dtype=torch.float64), random(N, 300, dtype=torch.float64)
    assert_agree(triton_kernels.weighted_rows(*code, W), weighted_rows_reference(code, W), 1e-14)
    assert_agree(triton_kernels.products(x, W, code.indices, code.offsets), products_reference(x, W, code), 1e-14)


@launching
def test_operands_need_not_be_contiguous() -> None:
    code = kernels.Code(*(part.repeat_interleave(2)[::2] for part in code_of([3, 0, 40, 5])))
    transposed, columns_of_wider = random(100, N).T, random(N, 130)[:, 7:107]
    row_repeated, number_repeated = random(100).expand(4, 100), random(1, 1).expand(4, 100)
    for W in (transposed, columns_of_wider):
        assert_agree(triton_kernels.weighted_rows(*code, W), weighted_rows_reference(code, W))
        for x in (row_repeated, number_repeated, random(100, 4).T):
            assert_agree(triton_kernels.products(x, W, code.indices, code.offsets), products_reference(x, W, code))


@launching
def test_the_torch_path_gives_the_same() -> None:
    code, x, W = code_of([5, 0, 40, 7]), random(4, 48), random(N, 48)
    on_cpu = kernels.Code(*(part.cpu() for part in code))
    products = triton_kernels.products(x, W, code.indices, code.offsets)
    torch.testing.assert_close(products.cpu(), kernels.products(x.cpu(), W.cpu(), on_cpu))
    torch.testing.assert_close(triton_kernels.weighted_rows(*code, W).cpu(), kernels.weighted_rows(on_cpu, W.cpu()))


@launching
def test_results_repeat_bit_by_bit() -> None:
    code, x, W = code_of([1000, 0, 64, 300]), random(4, 300), random(N, 300)
    for _ in range(3):
        first, second = (triton_kernels.weighted_rows(*code, W) for _ in range(2))
        assert first.equal(second)
        first, second = (triton_kernels.products(x, W, code.indices, code.offsets) for _ in range(2))
        assert first.equal(second)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
@with_triton
def test_on_a_gpu_float32_and_float64_are_taken_and_their_products_agree_with_those_of_the_cpu() -> None:
    x, W, dense = random(300, 768), random(N, 768), random(300, 768)
    assert triton_kernels.usable(x)
    assert triton_kernels.usable(x.double())
    assert not triton_kernels.usable(x.bfloat16())
    code = kernels.rows_of_k(*random(300, N).topk(32))
    on_cpu = kernels.Code(*(part.cpu() for part in code))
    assert_agree(kernels.products(x, W, code).cpu(), kernels.products(x.cpu(), W.cpu(), on_cpu))
    assert_agree(kernels.weighted_rows(code, W).cpu(), kernels.weighted_rows(on_cpu, W.cpu()))
    of_gpu, of_cpu = (kernels.ByFeature(c, N).transpose(c.values) for c in (code, on_cpu))
    assert_agree(kernels.weighted_rows(of_gpu, dense).cpu(), kernels.weighted_rows(of_cpu, dense.cpu()))
    assert_agree(kernels.sums_by_feature(of_gpu).cpu(), kernels.sums_by_feature(of_cpu))


def test_tensors_on_the_cpu_are_left_to_torch() -> None:
    assert not triton_kernels.usable(torch.ones(2, 3))


@launched_elsewhere
@with_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", ["_products", "_weighted_rows"])
def test_kernels_compile_for_gpus_that_are_not_here(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter lets pass what the compiler refuses."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = getattr(triton_kernels, name)
    types = {"indices": "*i64", "offsets": "*i64", "x_stride": "i32", "W_stride": "i32"}
    constants = {"d": 768, "ENTRIES": 16, "COLUMNS": 128}
    signature = {
        parameter: "constexpr" if parameter in constants else types.get(parameter, f"*{dtype}")
        for parameter in kernel.arg_names
    }
    for capability in (80, 90):
        compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]


@launched_elsewhere
@with_triton
def test_all_of_these_pass_under_the_interpreter() -> None:
    import triton

    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("Triton before 3.7 interprets no loop with NumPy 2.4: update Triton, or `pip install 'numpy<2.4'`")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) > len(ENTRIES_OF_ROWS) * 2
