"""The focal loss of a detector's anchors as an ONNX graph, to run where the logits are; the same for every model.

Inputs: `cls_logits` float32 [N, A, K], the model's output; `image` int64 [1], one of the N; `anchor` int64 [R], any of
its A anchors; `label` int64 [R], the class that each of these rows is given, -1 for background; and of the loss `gamma`
float32 [1], `positive_weight` and `negative_weight` float32 [K], `label_smoothing` float32 [1].

Outputs, per row: `focal` float32 [R], the focal loss summed over the classes; `given` [R], the logit of the given class
(of class 0 for background); `top` int64 [R], the likeliest class; `best` and `second` [R], the largest logits, `second`
the lowest float32 with a single class; `nothing` [R], minus the log-probability that there is none of the classes;
`finite` bool [R], whether all logits are finite; and `logits` [R, K].

With d the log-odds of what is given, the loss is (1 - p_t)^gamma * softplus(-d), see `models.focal_kernels`. Softplus
is max(d, 0) + log(1 + e) with e = exp(-|d|), and the logarithm is Kahan's: with u = 1 + e it is e where u is 1, else
log(u) * e / (u - 1). Neither the logarithm of a sigmoid nor that of 1 + e alone is right far from 0 in float32.
"""

import onnx

_OPSET = 17
"""Not the newest: its reductions have long had kernels on every device."""
_LOSS = """
<ir_version: 8, opset_import: ["" : {opset}]>
focal_loss (
    float[N, A, K] cls_logits, int64[1] image, int64[R] anchor, int64[R] label,
    float[1] gamma, float[K] positive_weight, float[K] negative_weight, float[1] label_smoothing
) => (
    float[R] focal, float[R] given, int64[R] top, float[R] best, float[R] second, float[R] nothing, bool[R] finite,
    float[R, K] logits
)
{{
    zero = Constant<value_float = 0.0> ()
    half = Constant<value_float = 0.5> ()
    one = Constant<value_float = 1.0> ()
    lowest = Constant<value_float = -3.4028234663852886e38> ()
    largest = Constant<value_float = 3.4028234663852886e38> ()
    no_class = Constant<value_int = 0> ()
    first_axis = Constant<value_ints = [0]> ()
    last_axis = Constant<value_ints = [1]> ()

    one_image = Gather<axis = 0> (cls_logits, image)
    every_row = Squeeze (one_image, first_axis)
    z = Gather<axis = 0> (every_row, anchor)
    logits = Identity (z)

    size = Abs (z)
    is_finite = LessOrEqual (size, largest)
    finite_as_int = Cast<to = 6> (is_finite)
    all_finite = ReduceMin<axes = [1], keepdims = 0> (finite_as_int)
    finite = Cast<to = 9> (all_finite)

    away = Neg (size)
    e = Exp (away)
    u = Add (one, e)
    rounded = Sub (u, one)
    is_lost = Equal (rounded, zero)
    divisor = Where (is_lost, one, rounded)
    log_u = Log (u)
    share = Div (e, divisor)
    compensated = Mul (log_u, share)
    tail = Where (is_lost, e, compensated)
    above = Max (z, zero)
    below = Sub (above, z)
    minus_log_no = Add (above, tail)
    minus_log_yes = Add (below, tail)
    nothing = ReduceSum<keepdims = 0> (minus_log_no, last_axis)

    minus_gamma = Neg (gamma)
    log_easy_yes = Mul (minus_log_no, minus_gamma)
    easy_yes = Exp (log_easy_yes)
    loss_yes = Mul (easy_yes, minus_log_yes)
    log_easy_no = Mul (minus_log_yes, minus_gamma)
    easy_no = Exp (log_easy_no)
    loss_no = Mul (easy_no, minus_log_no)

    shape = Shape (z)
    classes = Shape<start = 1, end = 2> (z)
    column = Unsqueeze (label, last_axis)
    count = Squeeze (classes)
    start = Constant<value_int = 0> ()
    step = Constant<value_int = 1> ()
    numbers = Range (start, count, step)
    is_given = Equal (column, numbers)
    smooth_low = Mul (label_smoothing, half)
    smooth_high = Sub (one, smooth_low)
    target = Where (is_given, smooth_high, smooth_low)
    rest = Where (is_given, smooth_low, smooth_high)
    weight_yes = Mul (target, positive_weight)
    weight_no = Mul (rest, negative_weight)
    part_yes = Mul (weight_yes, loss_yes)
    part_no = Mul (weight_no, loss_no)
    terms = Add (part_yes, part_no)
    focal = ReduceSum<keepdims = 0> (terms, last_axis)

    is_background = Less (column, no_class)
    known = Where (is_background, no_class, column)
    given_column = GatherElements<axis = 1> (z, known)
    given = Squeeze (given_column, last_axis)
    top = ArgMax<axis = 1, keepdims = 0> (z)
    top_column = Unsqueeze (top, last_axis)
    is_top = Equal (top_column, numbers)
    others = Where (is_top, lowest, z)
    best = ReduceMax<axes = [1], keepdims = 0> (z)
    second = ReduceMax<axes = [1], keepdims = 0> (others)
}}
"""


def build_loss_graph() -> bytes:
    """The graph that the module's docstring describes, serialised."""
    graph = onnx.parser.parse_model(_LOSS.format(opset=_OPSET))
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString()
    return data
