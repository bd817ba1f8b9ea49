"""What the errors of torch, NumPy and Python mean, in one plain sentence each.

Each sentence is true whenever its pattern matches: what only may be the cause follows "often"
or "if". The tests raise every one of these errors, so that a new torch with other words shows.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Explanation(NamedTuple):
    r"""A regular expression for an error's text, and what to say; ``\1`` is its first group."""

    pattern: str
    sentence: str


SHAPES = (
    Explanation(
        r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
        r"Shapes are aligned from the right: here an axis of \1 meets one of \2, and neither is 1."
        "\nIf a mean or sum lost its axes: keepdim=True. If it is one number for each image of a\n"
        "(B, C, H, W) batch: .view(-1, 1, 1, 1).",
    ),
    Explanation(
        r"operands could not be broadcast together with shapes",
        "Shapes are aligned from the right: axes that meet must be equal, or one of them 1.\n"
        "If a mean or sum lost its axes: keepdims=True, in NumPy.",
    ),
    Explanation(
        r"expanded size of the tensor .*Target sizes: (\[.*?\])\.\s+Tensor sizes: (\[.*?\])",
        r"\2 does not stretch to \1: aligned from the right, an axis must be the same, or 1.",
    ),
    Explanation(
        r"could not broadcast input array from shape (\(.*?\)) into shape (\(.*?\))",
        r"\1 does not stretch to \2: aligned from the right, an axis must be the same, or 1.",
    ),
    Explanation(
        r"doesn't match the broadcast shape",
        "What works in place cannot change a shape: make a new tensor, as in `a = a + b`.",
    ),
    Explanation(
        r"invalid for input of size (\d+)|cannot reshape array of size (\d+)",
        "A new shape must hold exactly as many values as the old one.",
    ),
    Explanation(
        r"shapes cannot be multiplied|size mismatch, got input|inconsistent tensor size, expected"
        r"|first two dimensions of batch2|matmul: .*mismatch in its core dimension",
        "For a product of matrices A @ B, the last axis of A is as long as the last but one of B\n"
        "(of a vector, its only one). `.mT` swaps the last two axes; * is not this product.",
    ),
    Explanation(
        r"einsum\(\): (subscript \w has size|the number of subscripts)|with remapped shapes",
        "In einsum, each axis of an operand has one letter, and a letter has one size\n"
        "everywhere (or 1).",
    ),
    Explanation(
        r"at least \(?edge_order\s*\+\s*1",
        "A difference needs two values along an axis, and one axis here has a single one. Without\n"
        "dim= (axis= in NumPy), gradient differences along every axis, batch and channels too.",
    ),
    Explanation(
        r"Sizes of tensors must match except in dimension",
        "cat joins along one axis that is there; the others must have equal sizes. stack makes a\n"
        "new axis, of things that have one shape.",
    ),
    Explanation(
        r"grid_sampler\(\): expected grid to have size \d in last dimension",
        "The components come last in the grid of grid_sample, (B, H, W, 2) in 2D: "
        "often a permute\nis missing.",
    ),
)

CONVOLUTIONS = (
    Explanation(
        r"weight should have at least three dimensions|to match the convolution dimensions",
        "The kernel of conv2d has four axes, (channels out, channels in, h, w): kernel[None, None]"
        "\nmakes them of (h, w). stride and padding are one number, or one for each image axis.",
    ),
    Explanation(
        r"\(batched\) input to conv2d",
        "conv2d takes images as (batch, channels, rows, columns): image[None, None] makes that of\n"
        "(rows, columns).",
    ),
    Explanation(
        r"Given groups=\d+, weight of size .* to have \d+ channels",
        "The second axis of the kernel times groups is how many channels the images must have.\n"
        "To filter each of C channels by itself: a kernel of (C, 1, h, w), and groups=C.",
    ),
    Explanation(
        r"Given groups=\d+, expected weight to be (at least|divisible)",
        "The first axis of the kernel must be a multiple of groups. The same (1, 1, h, w) kernel\n"
        "for each of C channels: kernel.expand(C, -1, -1, -1).",
    ),
    Explanation(
        r"Kernel size can't be greater than actual input size",
        "The kernel is larger than the padded image: often padding is missing, or the rows and\n"
        "columns are not the last two axes.",
    ),
)

GRADIENTS = (
    Explanation(
        r"element 0 of tensors does not require grad",
        "Nothing leads back from this number to a tensor that asks for a gradient. Often\n"
        "requires_grad_() is missing, or the number came from torch.no_grad(), detach() or item().",
    ),
    Explanation(
        r"can't optimize a non-leaf Tensor",
        "The optimizer was given the result of a computation. It wants the tensor itself that asks"
        "\nfor a gradient: x = start.detach().clone().requires_grad_(), in this order.",
    ),
    Explanation(
        r"params argument given to the optimizer should be an iterable",
        "The optimizer takes a list, also of a single tensor: Adam([x], …).",
    ),
    Explanation(
        r"optimizer can only optimize Tensors",
        "The optimizer takes a list of tensors that ask for a gradient: x.requires_grad_().",
    ),
    Explanation(
        r"Can't call numpy\(\) on Tensor that requires grad",
        "NumPy cannot pass gradients on: stay with torch's own functions. Where no gradient is\n"
        "wanted, x.detach() first.",
    ),
    Explanation(
        r"leaf Variable that requires grad is being used in an in-place operation",
        "A tensor that asks for a gradient cannot be changed in place while gradients are\n"
        "recorded: `with torch.no_grad():` around a step of descent, elsewhere `x = x + …`.",
    ),
    Explanation(
        r"needed for gradient computation has been modified by an inplace operation",
        "A value that the gradient needs was overwritten (`+=`, `x[…] = …`, a method ending in _,\n"
        "an optimizer's step): make a new tensor instead.",
    ),
    Explanation(
        r"backward through the graph a second time",
        "backward() and autograd.grad use up the record of a computation: compute the loss anew\n"
        "in each step, from the tensor that changes.",
    ),
    Explanation(
        r"derivative for aten::bincount is not implemented",
        "bincount counts without a gradient: index_add does the same with one.",
    ),
    Explanation(
        r"grad can be implicitly created only for scalar outputs",
        "backward() starts from one number: take .mean() or .sum() first.",
    ),
    Explanation(
        r"appears to not have been used in the graph",
        "As far as torch has recorded, the result does not depend on that tensor. Often it was\n"
        "computed from another copy of it, or detach(), item() or NumPy came between.",
    ),
)

NUMBERS = (
    Explanation(
        r"Input dtype must be either a floating point|std and var only support floating"
        r"|Expected a floating point or complex tensor|only Tensors of floating point",
        "These are whole numbers, or True and False; this needs fractions: .float() first.",
    ),
    Explanation(
        r"bitwise_xor_|ufunc 'bitwise_xor'|unsupported operand type\(s\) for \^",
        "In Python, ^ is not a power but works on bits. A power is **, as in x**2.",
    ),
    Explanation(
        r"expected scalar type \w+ but found|same dtype, but (found|got)"
        r"|Input type \(torch\.\w+\) and weight type \(torch\.\w+\) should be the same"
        r"|source and destination dtypes match|self\.dtype to be equal to src\.dtype",
        "The dtypes do not fit: x.to(y.dtype) gives x that of y. Often one came from NumPy, as\n"
        "float64, or was made of whole numbers.",
    ),
    Explanation(
        r"only one element tensors can be converted|cannot be converted to Scalar"
        r"|only (0-dimensional|size-1|length-1) arrays can be converted",
        "Exactly one number belongs here: .mean() or .sum() makes one, x[0] takes one of a vector."
        "\nIf it is a list of tensors: torch.stack joins them.",
    ),
    Explanation(
        r"only integer tensors of a single element can be converted to an index",
        "Python needs one whole number here: int(x). If a list stands on the other side, as in\n"
        "x * [1, 2] or [1, 2][x]: make it a tensor, torch.tensor([1, 2]).",
    ),
    Explanation(
        r"must be long, int, byte or bool tensors|must be of integer \(or boolean\) type"
        r"|Expected dtype int32.* for index|are valid indices",
        "Numbers that index are whole: .long() of a tensor, .astype(int) of an array, int(…) of a\n"
        "number. They cut fractions off; round() first takes the nearest.",
    ),
    Explanation(
        r"not on the expected device|to be on the same device",
        "The tensors are on different devices: make new ones with device=x.device.",
    ),
    Explanation(
        r"Boolean value of Tensor with more than one value|truth value of an array with more than",
        "One True or False is needed here: .any() or .all(). Element by element, torch.where or\n"
        "np.where stands for `if`, and & for `and`.",
    ),
)

ACCESS = (
    Explanation(
        r"values to unpack",
        "If it is a tensor or an array, it is unpacked along its first axis; x[:, 0] is a column.\n"
        "If it is a shape, it has one number for each axis.",
    ),
    Explanation(
        r"iteration over a 0-d tensor|invalid index of a 0-dim tensor|invalid index to scalar",
        "This is one number, without axes: there is nothing to unpack, to loop over or to index.",
    ),
    Explanation(
        r"too many indices for",
        "There are more indices than axes: look at its .shape.",
    ),
    Explanation(
        r"is out of bounds for (?:dimension|axis) \d+ with size ([1-9]\d*)",
        r"On an axis of n, indices are counted from 0 to n − 1; here n is \1.",
    ),
    Explanation(
        r"index out of range in self",
        "An index lies outside: they count from 0 to one less than the size of that axis.",
    ),
    Explanation(
        r"Dimension out of range|is out of bounds for array of dimension",
        "There is no such axis: they are counted from 0, the last is -1. Look at its .shape.",
    ),
    Explanation(
        r"builtin_function_or_method|'(method|function)' (object|and)|and '(method|function)'",
        "A function itself stands here, not its result: often its round brackets are missing.\n"
        "x.mean is the function, x.mean() its result.",
    ),
    Explanation(
        r"'numpy.ndarray' object has no attribute|^view\(\) takes from 0 to 2 positional",
        "This is a NumPy array. If you want what a tensor does: torch.from_numpy(x) makes one.",
    ),
    Explanation(
        r"got an unexpected keyword argument '(dim|keepdim)'",
        "If it is a NumPy array: NumPy says axis and keepdims for torch's dim and keepdim.",
    ),
    Explanation(
        r"operand type\(s\) for .*'numpy.ndarray' and 'Tensor'",
        "A NumPy array meets a tensor: torch.from_numpy(x) makes a tensor of an array.",
    ),
    Explanation(
        r"'Tensor' object has no attribute '(astype|copy)'",
        "This is a tensor, not a NumPy array: .to(dtype) stands for astype, .clone() for copy.",
    ),
    Explanation(
        r"argument '\w+' \(position \d+\) must be Tensor, not ",
        "A tensor belongs here: torch.from_numpy(…) of an array, torch.tensor(…) of numbers,\n"
        "torch.stack(…) of a list of tensors.",
    ),
    Explanation(
        r"torch\.return_types\.(max|min|median|mode|sort|topk)\b",
        r"This \1 gives two tensors, values and indices: take .values or .indices.",
    ),
    Explanation(
        r"unsupported operand type\(s\) for .*'(list|tuple|torch\.Size)'|can't multiply sequence",
        "A list, tuple or shape does no arithmetic number by number: torch.tensor(…) of it does.",
    ),
    Explanation(
        r"\bNoneType\b",
        "There is None where a value belongs: often from a function whose `return` is missing.",
    ),
    Explanation(
        r"object is not callable",
        "Round brackets call a function, and this is none: an element is x[0], a product needs *.",
    ),
    Explanation(
        r"name '\w+' is not defined",
        "Nothing has this name here: is it misspelled, or has the cell that makes it not been run?",
    ),
)

EXPLANATIONS = (*SHAPES, *CONVOLUTIONS, *GRADIENTS, *NUMBERS, *ACCESS)


def explanation(error: BaseException) -> str:
    """What this error means, from the first pattern that its text matches; "" for others.

    >>> explanation(TypeError("unsupported operand type(s) for ^: 'float' and 'int'"))
    'In Python, ^ is not a power but works on bits. A power is **, as in x**2.'
    """
    for pattern, sentence in EXPLANATIONS:
        if match := re.search(pattern, str(error)):
            return match.expand(sentence)
    return ""
