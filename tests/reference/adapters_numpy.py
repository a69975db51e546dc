"""The adaptation methods in float64 numpy, written from their formulas: one utterance, frame by frame.

A method is an object with the hooks that `conformer_numpy.log_probs` calls. It shares no code with the package; it
takes settings as an exported adapter has them, and the parameters of one task as the package names them.

Letters: T frames, D width, V vocabulary, R controller width.
"""

import math

import numpy as np

from reference.conformer_numpy import float64, sigmoid, silu


def gelu(x):
    """The approximation with tanh of arXiv 1606.08415."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def relu(x):
    """The positive part."""
    return np.maximum(x, 0.0)


ACTIVATIONS = {"relu": relu, "tanh": np.tanh, "gelu": gelu, "silu": silu, "sigmoid": sigmoid}


def make(settings: dict, trainable: dict, task: int, layers: int):
    """The hooks of one task.

    Args:
      settings: the method's name and hyper-parameters.
      trainable: {'shared', 'tasks'}, the bank with all its rows.
      task: the number of the row; None for `__base__`.
      layers: of the encoder.
    """
    if task is None:
        return Untouched()
    shared = float64(trainable["shared"])
    row = {part: row_of(tree, task) for part, tree in trainable["tasks"].items()}
    return METHODS[settings["name"]](settings, shared, row, layers)


def row_of(tree, task):
    """One task's own, out of leaves with a leading axis over the tasks."""
    if isinstance(tree, dict):
        return {name: row_of(child, task) for name, child in tree.items()}
    return np.asarray(tree[task], np.float64)


class Untouched:
    """Nothing is adapted."""

    def after_affine(self, layer, name, x, y):
        """The output y `[T, out]` of the affine map `name` of x `[T, in]` in a layer."""
        del layer, name, x
        return y

    def after_layer(self, layer, inputs, x):
        """The output x `[T, D]` of a layer whose input was `inputs`."""
        del layer, inputs
        return x

    def after_output(self, x, logits):
        """The logits `[T, V]` of the encoder's output x `[T, D]`."""
        del x
        return logits


class OutputLayer(Untouched):
    """logits = (W + W_a) x + b + b_a, where the task has an output layer."""

    def __init__(self, settings, shared, row, layers):
        del shared
        # The k-th of the rows of a layer-wise leaf is that of the k-th adapted layer from below.
        self.place = {layer: k for k, layer in enumerate(sorted(settings["layers"]) or range(layers))}
        self.own, self.per_layer = row["all_layers"], row["per_layer"]
        self.settings = settings

    def after_output(self, x, logits):
        """Adds W_a x + b_a."""
        if self.settings["output"] == "backbone":
            return logits
        correction = self.own["output"]
        return np.stack([logits[t] + x[t] @ correction["kernel"] + correction["bias"] for t in range(len(x))])


class Residual(OutputLayer):
    """x_l + U relu(P norm(x_l) + p) + u."""

    def after_layer(self, layer, inputs, x):
        """Normalizes, projects down, rectifies, projects up, adds."""
        if layer not in self.place:
            return x
        k, p, out = self.place[layer], self.per_layer, np.empty_like(x)
        for t in range(len(x)):
            centred = x[t] - x[t].mean()
            norm = centred / math.sqrt((centred**2).mean() + 1e-5) * p["norm"]["scale"][k] + p["norm"]["bias"][k]
            hidden = relu(norm @ p["down"]["kernel"][k] + p["down"]["bias"][k])
            out[t] = x[t] + hidden @ p["up"]["kernel"][k] + p["up"]["bias"][k]
        return out


class LowRank(OutputLayer):
    """y + (alpha / r) B (A x) for the named projections."""

    def after_affine(self, layer, name, x, y):
        """Adds the low-rank correction, one rank after another."""
        if name not in self.settings["projections"] or layer not in self.place:
            return y
        k, own, out = self.place[layer], self.per_layer[name.replace(".", "_")], y.copy()
        for t in range(len(x)):
            for r in range(self.settings["rank"]):
                along = x[t] @ own["a"][k][:, r]
                out[t] += self.settings["alpha"] / self.settings["rank"] * along * own["b"][k][r]
        return out


class Bias(OutputLayer):
    """y + d for each affine map that has a bias."""

    def after_affine(self, layer, name, x, y):
        """Adds d to every frame."""
        key = name.replace(".", "_")
        if key not in self.per_layer or layer not in self.place:
            return y
        d = self.per_layer[key]["bias"][self.place[layer]]
        return np.stack([y[t] + d for t in range(len(y))])


class Hierarchical(OutputLayer):
    """s_l = controller(x_l, s_{l-1}), s_0 = 0; x_l + head(s_l)."""

    def __init__(self, settings, shared, row, layers):
        super().__init__(settings, shared, row, layers)
        self.controller = Controller(settings, shared["all_layers"]["controller"])
        self.carries = None
        self.read = None

    def after_affine(self, layer, name, x, y):
        """Keeps what the controller reads."""
        if name == self.settings["reads"]:
            self.read = y.copy()
        return y

    def after_layer(self, layer, inputs, x):
        """One step of the recurrence in every frame, and the head's correction."""
        if layer not in self.place:
            return x
        if self.carries is None:
            self.carries = [self.controller.start() for _ in x]
        read, out = {"layer": x, "input": inputs}.get(self.settings["reads"], self.read), np.empty_like(x)
        for t in range(len(x)):
            state, self.carries[t] = self.controller.step(read[t], self.carries[t])
            out[t] = x[t] + head(self.settings["head"], self._head_of(layer), state)
        return out

    def _head_of(self, layer):
        if not self.settings["head_per_layer"]:
            return self.own["head"]
        return {name: leaf[self.place[layer]] for name, leaf in self.per_layer["head"].items()}


def head(kind, p, state):
    """V s + c; V2 relu(V1 s + c1) + c2; V2 (V1 s) + c."""
    if kind == "ffn":
        state = relu(state @ p["hidden_kernel"] + p["hidden_bias"])
    elif kind == "lowrank":
        state = state @ p["hidden_kernel"]
    return state @ p["kernel"] + p["bias"]


class Controller:
    """One frame's recurrence over the depth; the carry is (state, cell).

    The weights lie side by side in the kernels, R columns each: the candidate's, then those of the gates, which are
    (reset, update) of a GRU, one of an MGU, (forget, input, output) of an LSTM.
    """

    def __init__(self, settings, p):
        self.kind, self.width = settings["recurrence"], settings["width"]
        self.act, self.p = ACTIVATIONS[settings["activation"]], p

    def start(self):
        """Zeros."""
        return np.zeros(self.width), np.zeros(self.width)

    def block(self, number, x, state):
        """W x and U s + b of one block of R columns, apart."""
        part = slice(number * self.width, (number + 1) * self.width)
        return x @ self.p["kernel"][:, part] + self.p["bias"][part], state @ self.p["recurrent"][:, part]

    def gate(self, number, x, state):
        """sigmoid(W x + U s + b)."""
        return sigmoid(sum(self.block(number, x, state)))

    def step(self, x, carry):
        """The new state of `[R]`, and the new carry."""
        before, cell = carry
        if self.kind == "none":
            state = self.act(x @ self.p["kernel"] + self.p["bias"])
        elif self.kind == "indrnn":
            state = self.act(x @ self.p["kernel"] + self.p["recurrent"] * before + self.p["bias"])
        elif self.kind == "rnn":
            state = self.act(sum(self.block(0, x, before)))
        elif self.kind == "lstm":
            forget, write, show = (self.gate(number, x, before) for number in (1, 2, 3))
            cell = forget * cell + write * self.act(sum(self.block(0, x, before)))
            state = show * self.act(cell)
        else:
            reset = self.gate(1, x, before)
            update = self.gate(2, x, before) if self.kind == "gru" else reset
            drive, feedback = self.block(0, x, before)
            candidate = self.act(drive + reset * (feedback + self.p["feedback_bias"]))
            state = (1.0 - update) * candidate + update * before
        return state, (state, cell)


METHODS = {"hra": Hierarchical, "residual": Residual, "lora": LowRank, "bitfit": Bias, "output": OutputLayer}
