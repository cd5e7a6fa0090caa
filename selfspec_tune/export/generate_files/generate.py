"""Self-speculative decoding inside ``model.generate``: the model drafts for itself with some sub-layers left out.

    model.generate(**inputs, custom_generate=DIRECTORY, trust_remote_code=True)

Greedy output is what ``generate`` gives without it; sampled output has its distribution. Logits processors, stopping
criteria and streamers work as ever. Beams, several sequences at a time, guidance, or no cache, are decoded plainly.
Not for several threads on one model at once. ``max_draft_tokens``, ``exit_threshold`` and ``draft_counts`` (a
dictionary, which gets rounds, drafted and accepted tokens) may be given to ``generate``.
"""

import inspect
from contextlib import contextmanager

import torch
from torch.nn.functional import linear
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList, StopStringCriteria

SETTINGS = {}
# What the loop feeds the model with; a model that needs more is decoded plainly.
KNOWN = {"attention_mask", "cache", "cache_position", "logits_to_keep", "past_key_values", "position_ids", "use_cache"}


def generate(model, max_draft_tokens=None, exit_threshold=None, draft_counts=None, **arguments):
    """What ``model.generate(**arguments)`` does, sooner."""
    check(model)
    policy = {
        "max_draft_tokens": SETTINGS["max_draft_tokens"] if max_draft_tokens is None else max_draft_tokens,
        "exit_threshold": SETTINGS["exit_threshold"] if exit_threshold is None else exit_threshold,
        "draft_counts": {} if draft_counts is None else draft_counts,
    }
    for name in ("synced_gpus", "assistant_model"):
        if arguments.get(name) is None:
            arguments.pop(name, None)
    if not is_simple(model, arguments):
        return GenerationMixin.generate(model, **arguments)
    # What transformers does not hand on to a function.
    streamer, tokenizer = arguments.get("streamer"), arguments.pop("tokenizer", None)
    texts = arguments.pop("stop_strings", None)
    if texts is not None:
        criteria = arguments.pop("stopping_criteria", None) or []
        arguments["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, texts)])

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        loop = Loop(model, logits_processor, stopping_criteria, generation_config, streamer, policy)
        return loop.run(input_ids, inputs)

    return GenerationMixin.generate(model, custom_generate=decode, **arguments)


def is_simple(model, arguments):
    """Whether it is one sequence of text, sampled or greedy, that nothing with a state of its own has a say in.

    Anything else is decoded as ``generate`` does it alone.
    """
    config = arguments.get("generation_config") or model.generation_config

    def asked(name):
        return arguments[name] if arguments.get(name) is not None else getattr(config, name, None)

    plain = (("num_beams", (None, 1)), ("num_return_sequences", (None, 1)), ("guidance_scale", (None, 1, 1.0)))
    plain += (("penalty_alpha", (None, 0)), ("prompt_lookup_num_tokens", (None,)), ("assistant_early_exit", (None,)))
    plain += (("dola_layers", (None,)),)
    if any(asked(name) not in allowed for name, allowed in plain):
        return False
    if getattr(config, "stop_strings", None) and arguments.get("stop_strings") is None:
        return False
    return not any(arguments.get(name) is not None for name in ("inputs_embeds", "assistant_model", "position_ids"))


def check(model):
    """That the skip set is for such a model."""
    layers = model.config.get_text_config().num_hidden_layers
    expected = SETTINGS["num_layers"]
    if layers != expected:
        raise ValueError(
            f"This skip set is for a model of {expected} layers ({SETTINGS['model']}), this one has {layers}."
        )


class Loop:
    """One generation."""

    def __init__(self, model, processors, criteria, config, streamer, policy):
        self.model = model
        self.processors = processors
        self.criteria = criteria
        self.config = config
        self.streamer = streamer
        self.policy = policy
        self.counts = policy["draft_counts"]
        self.counts.update(rounds=0, drafted=0, accepted=0)
        self.scores, self.logits = (), ()
        ends = config.eos_token_id
        self.ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def run(self, ids, inputs):
        """The sequence, or what ``return_dict_in_generate`` asks for."""
        name = "cache" if "cache" in inputs else "past_key_values"
        cache = inputs.get(name)
        if len(ids) != 1 or not inputs.get("use_cache", True) or not is_plain(cache) or set(inputs) - KNOWN:
            return self.model._sample(
                ids, self.processors, self.criteria, self.config, streamer=self.streamer, **inputs
            )
        if not keeps_all(cache):
            cache = DynamicCache()  # whatever the model's windows: any position can be taken back
        self.name, self.cache, self.mask = name, cache, inputs.get("attention_mask")
        self.ids = ids
        logits = self.forward(ids[:, cache.get_seq_length() :], keep=1)
        stopped = self.accept(logits[0], self.pick(*self.believe(self.ids, logits[0])))
        while not stopped:
            stopped = self.round()
        if self.streamer is not None:
            self.streamer.end()
        return self.result()

    def round(self):
        """Draft, verify, accept; whether the generation has come to its end."""
        ids, verified = self.ids, self.cache.get_seq_length()
        room = self.criteria.max_length - ids.shape[1] - 1 if self.criteria.max_length is not None else 1 << 30
        drafted, beliefs = self.draft(min(self.policy["max_draft_tokens"], room))
        cut(self.cache, verified)
        logits = self.forward(torch.cat((ids[:, -1:], drafted), 1), keep=drafted.shape[1] + 1)
        num_drafted = drafted.shape[1]
        num_accepted = 0
        stopped = False
        for place in range(num_drafted + 1):
            if place == num_drafted:
                stopped = self.accept(logits[place], self.pick(*self.believe(self.ids, logits[place])))
                break
            token, is_draft = self.judge(logits[place], drafted[0, place], beliefs[place])
            num_accepted += is_draft
            stopped = self.accept(logits[place], token)
            if stopped or not is_draft:
                break
        cut(self.cache, self.ids.shape[1] - 1)
        self.counts["rounds"] += 1
        self.counts["drafted"] += num_drafted
        self.counts["accepted"] += num_accepted
        return stopped

    def draft(self, most):
        """Tokens [1, up to ``most``] of the model without its skipped sub-layers, and the distribution of each."""
        ids, beliefs = self.ids, []
        with left_out(self.model):
            while len(beliefs) < most:
                scores, belief = self.believe(ids, self.draft_step(ids[:, -1:]))
                token = self.pick(scores, belief)
                ids = torch.cat((ids, token.reshape(1, 1)), 1)
                beliefs.append(belief)
                if belief[token] < self.policy["exit_threshold"] or int(token) in self.ends:
                    break
        return ids[:, self.ids.shape[1] :], beliefs

    def judge(self, logits, drafted, belief):
        """The token at a place where ``drafted`` stands, and whether it is that one: by Leviathan et al., 2023."""
        scores, wanted = self.believe(self.ids, logits)
        if not self.config.do_sample:
            token = self.pick(scores, wanted)
            return token, bool(token == drafted)
        if torch.rand((), device=wanted.device) * belief[drafted] < wanted[drafted]:
            return drafted, True
        rest = (wanted - belief).clamp(min=0)
        return torch.multinomial(rest / rest.sum(), 1)[0], False

    def believe(self, ids, logits):
        """Scores [vocabulary] after ``ids`` as the processors leave them, and the distribution that they mean."""
        scores = self.processors(ids, logits[None].to(torch.float32))[0]
        return scores, scores.softmax(-1)

    def pick(self, scores, probabilities):
        """The next token."""
        return torch.multinomial(probabilities, 1)[0] if self.config.do_sample else scores.argmax()

    def accept(self, logits, token):
        """Put ``token`` out; whether that ends the generation."""
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores += (self.processors(self.ids, logits[None].to(torch.float32)),)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits += (logits[None].to(torch.float32),)
        self.ids = torch.cat((self.ids, token.reshape(1, 1)), 1)
        if self.streamer is not None:
            self.streamer.put(self.ids[:, -1].cpu())
        return bool(self.criteria(self.ids, self.scores or None).all())

    def forward(self, ids, keep):
        """Logits [keep, vocabulary] of the whole model."""
        return self.model(**self.inputs(ids), logits_to_keep=keep, return_dict=True).logits[0, -keep:]

    def draft_step(self, ids):
        """Logits [vocabulary] of the draft, those of tokens that it never drafts at the least."""
        vocabulary, head = SETTINGS["vocabulary"], self.model.get_output_embeddings()
        if vocabulary is None or type(head) is not torch.nn.Linear:
            return self.forward(ids, keep=1)[0]
        hidden = self.model.base_model(**self.inputs(ids), return_dict=True).last_hidden_state[0, -1]
        logits = linear(hidden, head.weight[:vocabulary], None if head.bias is None else head.bias[:vocabulary])
        all_logits = logits.new_full((len(head.weight),), torch.finfo(logits.dtype).min)
        all_logits[:vocabulary] = logits
        return all_logits

    def inputs(self, ids):
        """What a pass over ``ids``, the next of the text, takes."""
        start = self.cache.get_seq_length()
        end = start + ids.shape[1]
        mask = self.mask
        if mask is not None and mask.shape[1] < end:
            mask = torch.cat((mask, mask.new_ones(1, end - mask.shape[1])), 1)
        positions = torch.arange(start, end, device=ids.device)[None]
        if mask is not None:
            mask = mask[:, :end]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            self.name: self.cache,
            "use_cache": True,
        }

    def result(self):
        """As `generate` returns it."""
        if not self.config.return_dict_in_generate:
            return self.ids
        from transformers.generation import GenerateDecoderOnlyOutput

        output = {"sequences": self.ids, "scores": self.scores or None, "logits": self.logits or None}
        names = inspect.signature(GenerateDecoderOnlyOutput).parameters
        output["cache" if "cache" in names else "past_key_values"] = self.cache
        return GenerateDecoderOnlyOutput(**output)


def is_plain(cache):
    """Whether any position of the cache can be taken back; an empty one is replaced by such a one where it must be."""
    return isinstance(cache, DynamicCache) and (not cache.get_seq_length() or keeps_all(cache))


def keeps_all(cache):
    """Whether no layer of the cache forgets what has left a window."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def cut(cache, length):
    """Take back what lies beyond ``length``; layers that a draft left out have nothing there."""
    for layer in cache.layers:
        if layer.keys is not None and layer.keys.numel() and layer.keys.shape[-2] > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


@contextmanager
def left_out(model):
    """Within it the skipped sub-layers add nothing.

    The first layer's attention runs all the same where it is skipped, and its output is thrown away: masks and
    positions are made for the length of its cache.
    """
    replaced = []
    try:
        for path in SETTINGS["skipped"]:
            module = model.get_submodule(path)
            forward, own = module.forward, module.__dict__.get("forward")
            runs = path == SETTINGS["first_attention"]
            module.forward = silenced(forward, runs) if path in SETTINGS["attentions"] else nothing
            replaced.append((module, own))
        yield
    finally:
        for module, own in replaced:
            del module.forward
            if own is not None:  # wrapped by somebody else before us
                module.forward = own


def silenced(forward, runs):
    """An attention that adds nothing."""

    def attend(hidden_states, *positional, **named):
        if runs:
            forward(hidden_states, *positional, **named)
        return torch.zeros_like(hidden_states), None

    return attend


def nothing(hidden_states, *_, **__):
    """An MLP that adds nothing."""
    return torch.zeros_like(hidden_states)
