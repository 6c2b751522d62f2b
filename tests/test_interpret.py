"""The interpreter itself: against finite differences, and against PyTorch where that is installed."""

import numpy as np
import pytest
from graphs import MODELS, chain, cnn, draw_arrays, mlp, vgg
from plans import assert_close, bind, make_arenas

from fastadam.interpret import interpret
from fastadam.kernels.rules import Hyper
from fastadam.layout import to_kernel, to_public
from fastadam.plan import Plan
from fastadam.program import run_checked

EVERYTHING = [
    ("c", "conv", {"bias": True, "stride": 2}), ("n", "bn"), ("r", "relu"), ("d", "conv"),
    ("s", "add", "d", "r"), ("m", "maxpool"), ("e", "dropout", {"p": 0.3}), ("a", "avgpool"),
    ("l", "linear", {"out": 5, "bias": True}), ("b", "bn"), ("f", "dropout", {"p": 0.3, "per": "sample"}),
]  # fmt: skip


def test_gradients_are_slopes_of_the_loss():
    """Every operation: the loss moves along each parameter's random direction as its gradient says."""
    graph = chain(*EVERYTHING, shape=(8, 7, 3))
    params, state, x, labels = draw_arrays(graph, 5)
    rng, step = np.random.default_rng(1), 1e-6

    def run(changed):
        return interpret(graph, changed, state, x, labels, key=(3, 1), smoothing=0.1)

    gradients = run(params).gradients
    assert gradients.keys() == graph.trained().keys()
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        ends = [run({**params, name: params[name] + sign * step * direction}).loss for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-6, atol=1e-9, err_msg=name)


def test_inference_uses_the_running_statistics_and_no_dropout():
    graph = chain(("n", "bn"), ("d", "dropout", {"p": 0.5}), ("a", "avgpool"))
    params, state, x, labels = draw_arrays(graph, 3)
    got = interpret(graph, params, state, x, labels, training=False)
    rstd = 1 / np.sqrt(state["n.running_var"] + 1e-5)
    value = (x - state["n.running_mean"]) * rstd * params["n.weight"] + params["n.bias"]
    logits = value.mean((1, 2)) @ params["fc.weight"].T + params["fc.bias"]
    np.testing.assert_allclose(got.logits, logits, rtol=1e-12)
    assert not got.gradients
    assert all((got.state[name] == state[name]).all() for name in state)


def test_loss_scale_and_dropout_key():
    graph = mlp(dropout=0.5)
    params, state, x, labels = draw_arrays(graph, 4)
    args = (graph, params, state, x, labels)
    mean = interpret(*args, key=(1, 0))
    assert np.isclose(interpret(*args, key=(1, 0), loss_scale=1.0).loss, 4 * mean.loss)
    assert interpret(*args, key=(1, 1)).loss != mean.loss
    assert interpret(*args, key=(1, 0), index=np.arange(4) + 9).loss != mean.loss


class TestTorch:
    """The same step in PyTorch, float64."""

    def step(self, graph, params, state, x, labels, smoothing):
        """Loss, and {name: tensor in the public layout}: with gradients, or running statistics after it."""
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        functional = torch.nn.functional
        tensors = {}
        for param in graph.params:
            value = params[param.name] if param.name in params else state[param.name]
            tensors[param.name] = torch.tensor(to_public(param, value), requires_grad=param.name in params)
        values = {"x": torch.tensor(x.transpose(0, 3, 1, 2).copy())}
        for node in graph.nodes[1:]:
            y = [values[name] for name in node.inputs]
            w, b, mean, var = (
                tensors.get(f"{node.name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")
            )
            if node.op == "conv":
                value = functional.conv2d(y[0], w, b, node.attrs["stride"], node.attrs["pad"])
            elif node.op == "linear":
                value = functional.linear(y[0].flatten(1), w, b)
            elif node.op == "bn":
                value = functional.batch_norm(y[0], mean, var, w, b, training=True)
            elif node.op == "maxpool":
                value = functional.max_pool2d(y[0], 2)
            elif node.op == "avgpool":
                value = y[0].mean((2, 3))
            else:
                value = {"relu": torch.relu, "add": torch.add}[node.op](*y)
            values[node.name] = value
        target = torch.tensor(labels.astype(np.int64))
        loss = functional.cross_entropy(values[graph.output], target, label_smoothing=smoothing)
        loss.backward()
        return loss.item(), tensors

    @pytest.mark.parametrize("name", ["cnn", "vgg", "resnet20"])
    def test_interpreter_equals_torch(self, name):
        graph = MODELS[name]()
        arrays = draw_arrays(graph, 4)
        loss, tensors = self.step(graph, *arrays, 0.1)
        got = interpret(graph, *arrays, smoothing=0.1)
        assert_close(got.loss, loss, 1e-12, "loss")
        for param in graph.params:
            tensor = tensors[param.name]
            if param.kind == "running":
                assert_close(got.state[param.name], tensor.numpy(), 1e-10, param.name)
            else:
                assert_close(to_public(param, got.gradients[param.name]), tensor.grad.numpy(), 1e-10, param.name)

    @pytest.mark.parametrize(
        ("rule", "settings", "clip"),
        [
            ("adam", {"weight_decay": 0.0}, None),
            ("adam", {"weight_decay": 0.1}, None),
            ("adamw", {"weight_decay": 0.1}, 0.5),
            ("adamw", {"weight_decay": 0.1}, 1e9),
            ("sgd", {"momentum": 0.9, "weight_decay": 0.01}, None),
            ("sgd", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}, 0.5),
            ("sgd", {"momentum": 0.9, "dampening": 0.5}, None),
            ("sgd", {}, None),
        ],
    )
    def test_updates_equal_torch(self, rule, settings, clip):
        """Four whole steps of a plan over the arenas, clipping included, against torch.optim."""
        torch = pytest.importorskip("torch")
        graph, lr, beta1, beta2 = cnn(), 0.01, 0.8, 0.99
        params, state, x, labels = draw_arrays(graph, 4)
        arenas = make_arenas(graph, params, state)
        arenas["GRAD"].flat[...] = 0
        plan = Plan(graph, 4, source="float32", update=rule, clip_norm=clip, decay="all")
        program = bind(plan, arenas, x, labels, guard=64)

        tensors = {p.name: torch.tensor(to_public(p, params[p.name]), requires_grad=True) for p in graph.params}
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        betas = {} if rule == "sgd" else {"betas": (beta1, beta2)}
        optimizer = kinds[rule](tensors.values(), lr=lr, **betas, **settings)
        for t in range(1, 5):
            pull = settings.get("weight_decay", 0.0)
            hyper = Hyper(
                lr=lr, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, one_minus_beta2=1 - beta2,
                eps=1e-8, **{"decay" if rule == "adamw" else "weight_decay": pull * (lr if rule == "adamw" else 1)},
                m_correction=1 / (1 - beta1**t), v_correction=1 / (1 - beta2**t),
                momentum=settings.get("momentum", 0.0),
                one_minus_dampening=1 - settings.get("dampening", 0.0) if t > 1 else 1.0,
                nesterov=settings.get("nesterov", False), grad_scale=1.0,
            )  # fmt: skip
            program.inputs["h"][...] = hyper
            run_checked(program)
            now = {p.name: to_kernel(p, tensors[p.name].detach().numpy()) for p in graph.params}
            _, stepped = self.step(graph, now, state, x, labels, 0.0)
            for name, tensor in tensors.items():
                tensor.grad = stepped[name].grad
            if clip:
                torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
            optimizer.step()
        for param in graph.params:
            got = to_public(param, arenas["PARAM"].views[param.name])
            assert_close(got, tensors[param.name].detach().numpy(), 1e-8, param.name)  # sqrt(v) + eps near v = 0


def test_gaps_of_every_arena_stay_zero_through_an_update():
    """The gaps take part in each flat update and norm: zero has to be a fixed point."""
    graph = vgg(width=3)
    params, state, x, labels = draw_arrays(graph, 4)
    arenas = make_arenas(graph, params, state)
    program = bind(Plan(graph, 4, source="float32", update="adamw", clip_norm=1.0), arenas, x, labels)
    program.inputs["h"][...] = Hyper(
        lr=0.1, beta1=0.9, one_minus_beta1=0.1, beta2=0.99, one_minus_beta2=0.01, eps=1e-8, decay=0.01, m_correction=10,
        v_correction=100,
    )  # fmt: skip
    program.run()
    inside = np.zeros(arenas["PARAM"].flat.size, bool)
    for start, end, _ in arenas["PARAM"].segments:
        inside[start:end] = True
    assert not inside.all()
    for name in ("PARAM", "GRAD", "M", "V"):
        assert not arenas[name].flat[~inside].any()
        assert np.isfinite(arenas[name].flat).all()
