"""What contexts have read before the first byte of a file: how English and the usual formats begin and go on.

A few kilobytes, since small files are those that gain. It is part of the format: another text is another version.
"""

from __future__ import annotations

import numpy as np

from bytegolf.mixing.mixer import Mixer


def read(mixer: Mixer) -> Mixer:
    """A new mixer that has read it, in 7 ms."""
    mixer.engine.prime(0, np.frombuffer(TEXT.encode(), np.uint8))
    return mixer


TEXT = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title></title><link rel="stylesheet" type="text/css" href="https://www.
<script type="text/javascript" src=""></script></head><body><div class="content" id="main"><p><a href="http://www.
</a></p></div><ul><li></li></ul><table><tr><td width="100%"></td></tr></table><span style="color: #000000;"></span>
<img src="image.png" alt="" height="32"></body></html>
<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24" viewBox="0 0 24 24"><path d="M0 0h24v24H0z" fill="none"/>
{"name": "package", "version": "1.0.0", "description": "", "type": "object", "id": 1, "value": null, "items": [true,
false],
"properties": {}, "url": "https://github.com/", "license": "MIT", "dependencies": {}, "author": ""}
#!/bin/sh
# Copyright (C) 2001, 2002, 2003, 2004, 2005, 2010, 2015, 2020 Free Software Foundation, Inc.
# This program is free software: you can use, change and distribute it under the terms of the GNU General Public License
# as published by the Foundation, either version 2 of the License, or (at your option) any later version. It comes
WITHOUT
# ANY WARRANTY; without even the implied warranty of merchantability or fitness for a particular purpose. All rights
# reserved. Permission is granted to anyone; see the file COPYING for details. Licensed under the Apache License.
set -e; if [ -f "$1" ]; then echo "usage: $0 [options] file" >&2; exit 1; fi; for i in "$@"; do cd /usr/lib; done
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef CONFIG_H
#define CONFIG_H 1
/* The function returns the number of bytes, or -1 on error. */
static inline int main(int argc, const char *argv[]) { return 0; }
struct node { unsigned int size; void *data; struct node *next; }; typedef unsigned char uint8_t; extern "C" {
    for (int i = 0; i < n; i++) { if (x == NULL) continue; else break; } while (1); switch (c) { case 0: default: }
#endif
template <typename T> class vector { public: private: using namespace std; const std::string& value; virtual ~() =
default; };
public static void main(String[] args) { System.out.println(""); } import java.util.List; throw new Exception();
function f(a, b) { const result = this.length; var x = document.getElementById("id"); return true; } module.exports =
import os, sys, re
from __future__ import annotations
from typing import Any

class Error(Exception):
    \"\"\"Raised when an argument is not valid.\"\"\"

    def __init__(self, name: str = "", *args, **kwargs) -> None:
        super().__init__()
        self.name = name
        if name is not None and not isinstance(name, str):
            raise ValueError("expected a string")
        for key, value in self.items():
            yield key
        return self._value

def test(): assert len([x for x in range(10)]) == 10; print(f"{x}"); with open(path) as file: pass; try: except:
finally:
if __name__ == "__main__":
    main()
SELECT * FROM table WHERE id = 1 AND name IS NOT NULL ORDER BY id; CREATE TABLE IF NOT EXISTS; INSERT INTO VALUES ('');
CREATE OR REPLACE FUNCTION RETURNS integer AS $$ BEGIN END; $$ LANGUAGE plpgsql;
use strict; use warnings; my $self = shift; sub new { my ($class, %args) = @_; return bless {}, $class; } die "$!"
unless
2024-01-01 00:00:00 INFO [main] started; WARNING: ERROR: Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec 2023 127.0.0.1
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April June July August September October
.PHONY: all clean install
CC = gcc
CFLAGS = -O2 -g -Wall
# README

## Installation

To install the package, run the following command:

```bash
$ sudo apt-get install python3
$ ./configure --prefix=/usr/local && make && make install
```

## Usage

This is the documentation of the library. It is available from the web site, and there is a mailing list to which bug
reports should be sent. If you have any questions, please contact the author by e-mail. The source code can be found in
the directory of the same name. In order to build it from source, you will need the latest version of the compiler and
the header files of the following libraries. Note that this does not work with older versions, because they have not
been updated since. For more information about how to use these options, see the manual page, or type help at the
prompt.

- [ ] **Note**: the default value is used when no other has been given; for example, `--output`.
- See [the documentation](https://docs.) for details.

| name | description | default |
|---|---|---|

Changes in this release: fixed a problem with memory which could cause a crash; added support for new features; removed
several functions that were no longer used; improved performance. Thanks to all who have helped to make it possible.

The people of the United States have the right to their own government, and the first of these is that every man should
be able to live under the same law as others. There was a time when most of the world had never seen such a thing
before,
but after many years we know what it would be like without them. He said that she was not there; they were only two or
three of them, and their children had been with us for so long that I could not remember where they came from. What do
you think about it? Why don't you tell me, when I've been here all this time? It isn't just another way of looking at
something, though it may also be very important in some cases. A great number of things must be done at once, between
now and then, during which each part is being made into a whole, both by those who did and through what has already
happened. Yet how can anything be both good and bad, great and small, old and young, more and less, right and wrong,
high and low, early and late? However, since the second half of the year, over one hundred million people, including
women and children, have become members of the national or international community. Although it is difficult to
understand the development of a particular process, research at the university shows that different levels of
experience, education, information and knowledge are required. According to the report, the general system of control,
which was first used in 1990, will continue to provide services within the next few days. Perhaps the best example of
this kind is found against the background of public life: business, money, work, family, home, school, health, power,
water, food, music, history, art, language, science, state, country, city, house, head, hand, face, eyes, night, day,
morning, week, month, moment, place, point, problem, question, group, company, president, war, words, story, book.
Still,
they began to turn away from me, looked around, took it, gave up, went back, felt, kept, left, brought, thought, heard,
told, asked, seemed, called, tried, needed, wanted, started, showed, moved, lived, believed, held, stood, lost, paid,
met,
set, led, followed, stopped, created, allowed, offered, considered, expected, built, sent, reached, remained, almost,
always, again, often, enough, rather, together, against, until, upon, toward, among, while, whether, either, neither,
himself, herself, themselves, everything, nothing, someone, everyone, quite, really, perhaps, especially, certainly,
"""
