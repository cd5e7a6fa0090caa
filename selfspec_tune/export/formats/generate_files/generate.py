"""Self-speculative decoding inside ``model.generate``: the model drafts for itself with some sub-layers left out.

    model.generate(**inputs, custom_generate=DIRECTORY, trust_remote_code=True)

Greedy output is what ``generate`` gives without it; sampled output has its distribution. Logits processors, stopping
criteria and streamers work as ever; a processor of your own is asked for drafted tokens too, so it must go by the text
that it is given and remember nothing. Beams, several sequences at a time, guidance, watermarks, or no cache, are
decoded plainly. Not for several threads on one model at once. ``max_draft_tokens``, ``exit_threshold`` and
``draft_counts`` (a dictionary, which gets rounds, drafted and accepted tokens) may be given to ``generate``.
"""

import inspect
from contextlib import contextmanager

import torch
from torch.nn.functional import linear
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList, StopStringCriteria

SETTINGS = {}
MOST_OTHERS = 1024  # token ids of the text that are drafted too, past the first ones
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
    has_own_cache = any(arguments.get(name) is not None for name in ("cache", "past_key_values", "cache_params"))
    # What transformers does not hand on to a function.
    streamer, tokenizer = arguments.get("streamer"), arguments.pop("tokenizer", None)
    texts = arguments.pop("stop_strings", None)
    if texts is not None:
        criteria = arguments.pop("stopping_criteria", None) or []
        arguments["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, texts)])

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        loop = Loop(model, logits_processor, stopping_criteria, generation_config, streamer, policy)
        return loop.run(input_ids, inputs, has_own_cache)

    return GenerationMixin.generate(model, custom_generate=decode, **arguments)


def is_simple(model, arguments):
    """Whether it is one sequence of text, sampled or greedy, that nothing with a state of its own has a say in.

    Anything else is decoded as ``generate`` does it alone.
    """

    def asked(name):
        """As transformers merges it: given, else by the configuration given, else the model's own."""
        configs = arguments.get("generation_config"), model.generation_config
        values = (arguments.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    plain = (("num_beams", (None, 1)), ("num_return_sequences", (None, 1)), ("guidance_scale", (None, 1, 1.0)))
    plain += (("penalty_alpha", (None, 0)), ("prompt_lookup_num_tokens", (None,)), ("assistant_early_exit", (None,)))
    plain += (("dola_layers", (None,)), ("watermarking_config", (None,)), ("token_healing", (None, False)))
    if any(asked(name) not in allowed for name, allowed in plain):
        return False
    if arguments.get("stop_strings") is None and asked("stop_strings"):
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

    def run(self, ids, inputs, has_own_cache):
        """The sequence, or what ``return_dict_in_generate`` asks for.

        ``has_own_cache``: whether the cache is the user's, who will want it filled.
        """
        name = "cache" if "cache" in inputs else "past_key_values"
        cache, mask = inputs.get(name), inputs.get("attention_mask")
        others = [value for name, value in inputs.items() if name not in KNOWN]
        is_text = all(value is None or (isinstance(value, dict) and not value) for value in others)  # no picture
        is_known = len(ids) == 1 and inputs.get("use_cache", True) and is_text
        is_known = is_known and is_plain(cache) and (keeps_all(cache) or not has_own_cache)
        if not is_known or not is_whole(ids, cache, mask, self.config):
            return self.model._sample(
                ids, self.processors, self.criteria, self.config, streamer=self.streamer, **inputs
            )
        if not keeps_all(cache):
            cache = DynamicCache()  # whatever the model's windows: any position can be taken back
        self.name, self.cache, self.mask = name, cache, mask
        self.ids = ids
        with watched(self.model) as self.returned:
            logits = self.forward(ids[:, cache.get_seq_length() :], keep=1)
        self.vocabulary = logits.shape[-1]
        scores, belief = self.believe(self.ids, logits[0])
        stopped = self.accept(logits[0], scores, self.pick(scores, belief))
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
            scores, wanted = self.believe(self.ids, logits[place])
            if place == num_drafted:
                stopped = self.accept(logits[place], scores, self.pick(scores, wanted))
                break
            token, is_draft = self.judge(scores, wanted, drafted[0, place], beliefs[place])
            num_accepted += is_draft
            stopped = self.accept(logits[place], scores, token)
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
        others = past(SETTINGS["vocabulary"], ids[0].tolist(), self.vocabulary)
        with left_out(self.model, self.returned):
            while len(beliefs) < most:
                scores, belief = self.believe(ids, self.draft_step(ids[:, -1:], others))
                token = self.pick(scores, belief)
                ids = torch.cat((ids, token.reshape(1, 1)), 1)
                beliefs.append(belief)
                if belief[token] < self.policy["exit_threshold"] or int(token) in self.ends:
                    break
        return ids[:, self.ids.shape[1] :], beliefs

    def judge(self, scores, wanted, drafted, belief):
        """The token at a place where ``drafted`` stands, and whether it is that one: by Leviathan et al., 2023."""
        if not self.config.do_sample:
            token = self.pick(scores, wanted)
            return token, bool(token == drafted)
        if torch.rand((), device=wanted.device) * belief[drafted] < wanted[drafted]:
            return drafted, True
        rest = (wanted - belief).clamp(min=0)
        rest = rest if rest.any() else wanted  # the same distribution, but for roundings
        return torch.multinomial(rest / rest.sum(), 1)[0], False

    def believe(self, ids, logits):
        """Scores [vocabulary] after ``ids`` as the processors leave them, and the distribution that they mean."""
        scores = self.processors(ids, logits[None].to(torch.float32, copy=True))[0]
        return scores, scores.softmax(-1)

    def pick(self, scores, probabilities):
        """The next token."""
        return torch.multinomial(probabilities, 1)[0] if self.config.do_sample else scores.argmax()

    def accept(self, logits, scores, token):
        """Put ``token`` out; whether that ends the generation."""
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores += (scores[None],)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits += (logits[None].to(torch.float32),)
        self.ids = torch.cat((self.ids, token.reshape(1, 1)), 1)
        if self.streamer is not None:
            self.streamer.put(self.ids[:, -1].cpu())
        return bool(self.criteria(self.ids, self.scores or None).all())

    def forward(self, ids, keep):
        """Logits [keep, vocabulary] of the whole model."""
        can_keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        kept = {"logits_to_keep": keep} if can_keep else {}
        output = self.model(**self.inputs(ids), **kept, return_dict=True)
        return output.logits[0, -keep:].to(self.ids.device)

    def draft_step(self, ids, others):
        """Logits [vocabulary] of the draft, at the least but for its first tokens and the ``others`` of the text."""
        first = SETTINGS["vocabulary"]
        with short_head(self.model, first, others):
            logits = self.forward(ids, keep=1)[0]
        if first is None:
            return logits
        if len(logits) == self.vocabulary:
            logits = torch.cat((logits[:first], logits[others]))
        whole = logits.new_full((self.vocabulary,), torch.finfo(logits.dtype).min)
        whole[:first] = logits[:first]
        whole[others] = logits[first:]
        return whole

    def inputs(self, ids):
        """What a pass over ``ids``, the next of the text, takes, where the model lies."""
        device = ids.device if self.model.device.type == "meta" else self.model.device
        ids = ids.to(device)
        start = self.cache.get_seq_length()
        end = start + ids.shape[1]
        mask = None if self.mask is None else self.mask.to(device)
        if mask is not None and mask.shape[1] < end:
            mask = torch.cat((mask, mask.new_ones(1, end - mask.shape[1])), 1)
        positions = torch.arange(start, end, device=device)[None]
        if mask is not None:
            mask = mask[:, :end]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]
        takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        where = {"position_ids": positions} if takes_positions else {}
        return {"input_ids": ids, "attention_mask": mask, **where, self.name: self.cache, "use_cache": True}

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
    is_known = isinstance(cache, DynamicCache) and not getattr(cache, "offloading", False)
    return is_known and (not cache.get_seq_length() or keeps_all(cache))


def is_whole(ids, cache, mask, config):
    """Whether ``ids`` is all of the text, and not only what follows a text in the cache."""
    cached = cache.get_seq_length()
    known = getattr(config, "_mask_length", -1) if mask is None else mask.shape[1]
    return not cached or (known == ids.shape[1] and cached < known)


def keeps_all(cache):
    """Whether no layer of the cache forgets what has left a window."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def cut(cache, length):
    """Take back what lies beyond ``length``; layers that a draft left out have nothing there."""
    for layer in cache.layers:
        if layer.keys is not None and layer.keys.numel() and layer.keys.shape[-2] > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def past(first, text, vocabulary):
    """The token ids of a text from ``first`` on, ascending; of many the latest, and none that has no logit."""
    latest = dict.fromkeys(token for token in reversed(text) if first is not None and first <= token < vocabulary)
    return sorted(list(latest)[:MOST_OTHERS])


@contextmanager
def short_head(model, vocabulary, others):
    """Within it a plain head gives the logits of the first ``vocabulary`` tokens and of ``others`` alone."""
    head = model.get_output_embeddings()
    if vocabulary is None or type(head) is not torch.nn.Linear or head.weight.is_meta:
        yield
        return
    parts = [
        (head.weight[rows], None if head.bias is None else head.bias[rows]) for rows in (slice(vocabulary), others)
    ]

    def short(hidden):
        return torch.cat([linear(hidden.to(weight.device), weight, bias) for weight, bias in parts], -1)

    with replaced({head: short}):
        yield


@contextmanager
def watched(model):
    """Within it what every skipped module returns is noted: how many values, 0 for a tensor alone, and how wide."""
    returned = {}

    def note(path):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            returned[path] = len(output) if isinstance(output, tuple) else 0, first.shape[-1]

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in SETTINGS["skipped"]]
    try:
        yield returned
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def left_out(model, returned):
    """Within it the skipped modules add nothing; ``returned``: what each returns, by `watched`.

    The first layer's attention runs all the same where it is skipped, and its output is thrown away: masks and
    positions are made for the length of its cache.
    """
    forwards = {}
    for path in SETTINGS["skipped"]:
        module = model.get_submodule(path)
        forwards[module] = silenced(module.forward, *returned[path], runs=path in SETTINGS["first_attention"])
    with replaced(forwards), fewer_experts(model):
        yield


@contextmanager
def fewer_experts(model):
    """Within it routers, which all call it ``top_k``, choose as many experts as the draft has at most."""
    most = SETTINGS["experts"]
    routers = [] if most is None else [one for one in model.modules() if isinstance(getattr(one, "top_k", None), int)]
    own = [router.top_k for router in routers]
    try:
        for router in routers:
            router.top_k = min(router.top_k, most)
        yield
    finally:
        for router, top_k in zip(routers, own, strict=True):
            router.top_k = top_k


def silenced(forward, number, width, runs):
    """The forward of a module that adds nothing, in as many values and as wide as it has them."""

    def add_nothing(*positional, **named):
        if runs:
            forward(*positional, **named)
        given = positional[0] if positional else named["hidden_states"]
        nothing = given.new_zeros(*given.shape[:-1], width)
        return (nothing, *[None] * (number - 1)) if number else nothing

    return add_nothing


@contextmanager
def replaced(forwards):
    """Within it modules compute by other functions than their own."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            del module.forward
            if before is not None:  # wrapped by somebody else before us
                module.forward = before
