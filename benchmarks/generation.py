"""Answers to 100 held-out questions: ours, one prompt at a time, and the pipeline of transformers.

    python benchmarks/generation.py [--model smollm2-135m] [--data FILE] [--rounds 3] [--new 64]    # a quarter of an hour

All three use the same weights in bf16, the same chat template and greedy decoding. Counted are answer tokens (the EOS ends an answer and counts) per second of wall clock, from the questions to the
decoded texts; each round runs the three in turn and ratios are taken within it. At the end the answers are compared in fp32, where all three must say the same.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "counsel_chat" / "valid.jsonl"


def ours(model, tok, questions, new):
    from zenbot.generation import generate_answers
    return [a["answer"] for a in generate_answers(model, tok, questions, max_new_tokens=new)]


def one_at_a_time(model, tok, questions, new):
    """The loop of the two original projects."""
    answers = []
    for messages in questions:
        ids = tok(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=new, do_sample=False, pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id)
        answers.append(tok.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
    return answers


def pipeline_of_8(model, tok, questions, new):
    from transformers import pipeline
    tok.padding_side = "left"
    pipe = pipeline("text-generation", model=model, tokenizer=tok, batch_size=8)
    try:
        return [out[0]["generated_text"][-1]["content"].strip() for out in pipe(questions, max_new_tokens=new, do_sample=False, pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id)]
    finally:
        tok.padding_side = "right"


WAYS = {"ours": ours, "one at a time": one_at_a_time, "pipeline, batch 8": pipeline_of_8}


def tokens_of(tok, answers, new):
    return sum(min(new, len(tok(a, add_special_tokens=False)["input_ids"]) + 1) for a in answers)


def main():
    from zenbot.models import load_model
    from zenbot.prompts import load_prompter
    from zenbot.rows import load_rows
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer, at most")
    parser.add_argument("--equal", type=int, default=25, help="questions that are answered in fp32 and compared")
    args = parser.parse_args()
    tok, model = load_prompter(args.model), load_model(args.model, torch.bfloat16, "cpu")
    questions = [r["messages"][:-1] for r in load_rows(args.data)[0]]
    questions = list({str(q): q for q in questions}.values())[:args.n]
    print(f"{len(questions)} different questions, {args.new} tokens at most, {torch.get_num_threads()} threads", flush=True)
    for way in WAYS.values():
        way(model, tok, questions[:2], 4)
    rates = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            start = time.perf_counter()
            answers = way(model, tok, questions, args.new)
            rates[name].append(tokens_of(tok, answers, args.new) / (time.perf_counter() - start))
            print(f"  {name}: {rates[name][-1]:.1f} answer tokens/s", flush=True)
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):.1f} answer tokens/s (median); ours is {statistics.median(o / f for o, f in zip(rates['ours'], found)):.2f} times as fast")
    model = model.float()
    said = {name: way(model, tok, questions[:args.equal], args.new) for name, way in WAYS.items()}
    for name in list(WAYS)[1:]:
        print(f"fp32: {sum(a == b for a, b in zip(said['ours'], said[name]))} of {len(said[name])} answers are those of '{name}'")


if __name__ == "__main__":
    main()
