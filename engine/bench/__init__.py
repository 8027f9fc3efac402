"""Measures engines side by side: on random weights in published shapes with acceptance set, or on a real pair."""
