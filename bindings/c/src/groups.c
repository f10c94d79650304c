#include "system.h"

#include "groups.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"

static int compare(const void *one, const void *other)
{
    return strcmp(((const struct group *)one)->name, ((const struct group *)other)->name);
}

static struct group *find_group(const apachews_server *server, const char *name)
{
    struct group key = {.name = name};
    void *found = tfind(&key, &server->groups, compare);
    return found != NULL ? *(struct group **)found : NULL;
}

static struct group *find_or_add(apachews_server *server, const char *name)
{
    struct group *group = find_group(server, name);
    if (group != NULL) {
        return group;
    }
    size_t size = strlen(name) + 1;
    group = malloc(sizeof *group + size);
    if (group == NULL) {
        return NULL;
    }
    *group = (struct group){.name = group->storage};
    memcpy(group->storage, name, size);
    if (tsearch(group, &server->groups, compare) == NULL) {
        free(group);
        return NULL;
    }
    return group;
}

static void remove_if_empty(apachews_server *server, struct group *group)
{
    if (group->first == NULL) {
        tdelete(group, &server->groups, compare);
        free(group);
    }
}

/* Remove the membership that a link of a client's list points to. */
static void remove_membership(apachews_server *server, struct membership **link)
{
    struct membership *membership = *link;
    struct group *group = membership->group;
    channel_remove(membership);
    *link = membership->of_client;
    *(membership->previous ? &membership->previous->next : &group->first) = membership->next;
    *(membership->next ? &membership->next->previous : &group->last) = membership->previous;
    free(membership);
    remove_if_empty(server, group);
}

static struct membership **find_link(apachews_client *client, const char *name)
{
    struct membership **link = &client->memberships;
    while (*link != NULL && strcmp((*link)->group->name, name) != 0) {
        link = &(*link)->of_client;
    }
    return link;
}

bool apachews_group_join(apachews_client *client, const char *name)
{
    if (client->state >= PARTING) {
        errno = EPIPE;
        return false;
    }
    if (*find_link(client, name) != NULL) {
        return true;
    }
    struct group *group = find_or_add(client->server, name);
    struct membership *membership = malloc(sizeof *membership);
    if (group == NULL || membership == NULL) {
        free(membership);
        if (group != NULL) {
            remove_if_empty(client->server, group);
        }
        errno = ENOMEM;
        return false;
    }
    *membership = (struct membership){
        .client = client,
        .group = group,
        .previous = group->last,
        .of_client = client->memberships,
    };
    *(group->last ? &group->last->next : &group->first) = membership;
    group->last = membership;
    client->memberships = membership;
    if (!channel_add(membership)) {
        remove_membership(client->server, &client->memberships);
        errno = ENOMEM;
        return false;
    }
    return true;
}

bool apachews_group_leave(apachews_client *client, const char *name)
{
    struct membership **link = find_link(client, name);
    if (*link == NULL) {
        return false;
    }
    remove_membership(client->server, link);
    return true;
}

void groups_leave_all(struct apachews_client *client)
{
    while (client->memberships != NULL) {
        remove_membership(client->server, &client->memberships);
    }
}

const struct membership *groups_first_member(const apachews_server *server, const char *name)
{
    const struct group *group = find_group(server, name);
    return group != NULL ? group->first : NULL;
}

const struct membership *groups_next_member(const struct membership *membership)
{
    return membership->next;
}

struct apachews_client *groups_client(const struct membership *membership)
{
    return membership->client;
}

const struct channel_group *groups_channels(const apachews_server *server, const char *name)
{
    const struct group *group = find_group(server, name);
    return group != NULL ? group->channels : NULL;
}

size_t apachews_group_members(apachews_server *server, const char *name,
                              apachews_client **members, size_t capacity)
{
    size_t count = 0;
    for (const struct membership *membership = groups_first_member(server, name);
         membership != NULL; membership = membership->next) {
        if (count < capacity) {
            members[count] = membership->client;
        }
        count++;
    }
    return count;
}
