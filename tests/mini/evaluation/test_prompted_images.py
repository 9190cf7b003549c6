from stages.mini.evaluation.prompted_images import held_out_prompts


def test_prompts_name_the_style_only_where_asked_and_ask_for_what_it_shows():
    named = held_out_prompts(("micah", "adventurer"), 8, named=True)
    assert [prompt.style for prompt in named[:2]] == ["micah", "adventurer"]
    assert named[0].text.startswith("toon portrait, ")
    assert "clothes" in named[0].attributes
    assert "clothes" not in named[1].attributes
    unnamed = held_out_prompts(("micah",), 8, named=False, shown_by=("micah", "adventurer"))
    assert all(prompt.text.startswith("a portrait, ") and "clothes" not in prompt.attributes for prompt in unnamed)
    assert unnamed == held_out_prompts(("micah",), 8, named=False, shown_by=("micah", "adventurer"))
