"""Synthetic speech by eSpeak NG: grammars, speakers, rendering."""
