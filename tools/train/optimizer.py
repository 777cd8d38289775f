"""The optimizer: Muon for the matrices of the layers, Adam for all else."""

import torch

MOMENTUM = 0.95
WEIGHT_DECAY = 0.05
# Quintic Newton-Schulz iteration towards the nearest orthogonal matrix (Jordan et al. 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# Of the learning rate, for routers. Their inputs have a large common part, and an Adam step moves what they say to all
# tokens alike by the rate times the sum of its magnitudes: at the full rate they flew from one expert to another.
ROUTER_RATE = 0.15
UPDATE_RMS = 0.2  # as Adam's, so that both take one learning rate (Liu et al. 2025, "Muon is Scalable")


def is_router(name):
    return "ffn_gate_inp" in name


def is_layer_matrix(name, tensor):
    """Whether Muon takes it. Routers stay with Adam: their rows are one expert's each, not a map as a whole."""
    return tensor.ndim >= 2 and name.startswith("blk.") and not is_router(name)


def orthogonal(matrices):
    """Nearly the orthogonal factor of each of [N, rows, columns]; rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon:
    """Momentum, orthogonalized. Experts of a stack are matrices of their own; equal sizes are handled together."""

    def __init__(self, params):
        self.params = params
        self.momenta = {name: torch.zeros_like(param) for name, param in params.items()}
        self.by_size = {}
        for name, param in params.items():
            self.by_size.setdefault(tuple(sorted(param.shape[-2:])), []).append(name)

    @torch.no_grad()
    def step(self, rate):
        for names in self.by_size.values():
            updates = []
            for name in names:
                gradient, momentum = self.params[name].grad, self.momenta[name]
                momentum.lerp_(gradient, 1 - MOMENTUM)
                update = gradient.lerp(momentum, MOMENTUM)
                update = update.reshape(-1, *update.shape[-2:])
                updates.append(update.mT if update.shape[-2] > update.shape[-1] else update)
            stacked = orthogonal(torch.cat(updates))
            stacked *= UPDATE_RMS * max(stacked.shape[-2:]) ** 0.5
            for name, update in zip(names, stacked.split([len(update) for update in updates])):
                param = self.params[name]
                if param.shape[-2] > param.shape[-1]:
                    update = update.mT
                param.mul_(1 - rate * WEIGHT_DECAY).sub_(rate * update.reshape(param.shape))

    def state(self):
        return self.momenta

    def load_state(self, state):
        for name, momentum in state.items():
            self.momenta[name].copy_(momentum)


class Optimizer:
    """Steps all parameters of a model, a dictionary of leaf tensors."""

    def __init__(self, params, use_muon=True):
        matrices = {name: p for name, p in params.items() if use_muon and is_layer_matrix(name, p)}
        others = {name: p for name, p in params.items() if name not in matrices}
        self.params = list(params.values())
        self.muon = Muon(matrices)
        groups = [
            {"params": [p for name, p in others.items() if is_router(name) == routers], "scale": scale}
            for routers, scale in ((False, 1.0), (True, ROUTER_RATE))
        ]
        groups = [group for group in groups if group["params"]]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, fused=True)

    def step(self, rate):
        """Applies the gradients, clipped to a norm of one, and forgets them."""
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.muon.step(rate)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["scale"]
        self.adam.step()
        for param in self.params:
            param.grad = None

    def state(self):
        return {"muon": self.muon.state(), "adam": self.adam.state_dict()}

    def load_state(self, state):
        self.muon.load_state(state["muon"])
        self.adam.load_state_dict(state["adam"])
