#ifndef TABLE_H
#define TABLE_H

#include <stddef.h>

/* A word and how often it was seen. */
struct entry {
    char *word;
    unsigned long count;
};

/* All words seen so far, in no order until table_sort. */
struct table {
    struct entry *entries;
    size_t used, room;
};

/* Counts one more of `word`; returns 0 when there is no memory. */
int table_add(struct table *table, const char *word);
/* Most frequent first, equal ones by the alphabet. */
void table_sort(struct table *table);
void table_free(struct table *table);

#endif
