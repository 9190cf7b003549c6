import pytest
import torch

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.device_errors import explain_device_error

NOT_DETERMINISTIC = (
    "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or you can use the "
    "'warn_only=True' option, if that's acceptable for your application."
)
CUBLAS = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS and you "
    "have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable before running "
    "your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
)
NOT_THERE = "The operator 'aten::_fused_adamw_' is not currently implemented for the MPS device."
MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free."


def test_an_operation_without_a_deterministic_form_is_named_with_the_setting_that_gives_it_up():
    text = explain_device_error("train_text2img", RuntimeError(NOT_DETERMINISTIC))
    assert text is not None
    assert text.startswith("upsample_bicubic2d_backward_out_cuda has no form on this device")
    assert "runtime.deterministic=false" in text


def test_what_torch_says_of_itself_is_understood():
    """Of an operation that has no deterministic form on a CPU either."""
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2).resize_(4).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)
    text = explain_device_error("embed", caught.value)
    assert text is not None and text.startswith("put_ has no form on this device")


@pytest.mark.parametrize(
    ("stage", "setting"), [("train_dreambooth", "train_dreambooth.train_batch_size"), ("generate", "generate.batch_size")]
)
def test_too_little_memory_names_the_setting_of_the_stage(stage, setting):
    text = explain_device_error(stage, torch.OutOfMemoryError(MEMORY))
    assert text is not None
    assert setting in text and "2.00 GiB" in text


def test_an_environment_that_forbids_determinism_is_named():
    assert "unset it in the environment" in (explain_device_error("generate", RuntimeError(CUBLAS)) or "")


def test_an_operation_that_a_device_lacks_is_named():
    text = explain_device_error("train_text2img", NotImplementedError(NOT_THERE))
    assert text is not None
    assert text.startswith("torch has no aten::_fused_adamw_ for MPS")


def test_other_errors_keep_their_traceback(capsys):
    assert explain_device_error("generate", RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError, match="shapes"), errors_in_one_line("drawing"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(SystemExit), errors_in_one_line("drawing"):
        raise torch.OutOfMemoryError(MEMORY)
    assert capsys.readouterr().err.startswith("drawing: error: CUDA out of memory")
