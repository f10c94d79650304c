<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;

/**
 * A JSON document of the wire, with typed access to its members.
 *
 * Objects are decoded as objects, because PHP's arrays do not distinguish {} from [].
 */
final class Document
{
    private function __construct(private readonly string $name, private readonly \stdClass $members)
    {
    }

    /**
     * Decodes a payload; unknown members are ignored.
     *
     * @param string $name of the frame, for the errors
     *
     * @throws WireError invalid JSON, or another version
     */
    public static function decode(string $payload, string $name): self
    {
        $members = json_decode($payload);
        if (json_last_error() !== JSON_ERROR_NONE) {
            throw new WireError("$name: invalid JSON");
        }
        if (!$members instanceof \stdClass || ($members->version ?? null) !== Frame::VERSION) {
            throw new WireError("$name has an unsupported version: expected " . Frame::VERSION);
        }
        return new self($name, $members);
    }

    public function has(string $member): bool
    {
        return isset($this->members->$member);
    }

    public function text(string $member): string
    {
        $value = $this->value($member);
        return is_string($value) ? $value : throw $this->wrong($member, 'a string');
    }

    public function optionalText(string $member): ?string
    {
        return $this->value($member) === null ? null : $this->text($member);
    }

    public function number(string $member): int
    {
        $value = $this->value($member);
        return is_int($value) ? $value : throw $this->wrong($member, 'an integer');
    }

    public function truth(string $member): bool
    {
        $value = $this->value($member);
        return is_bool($value) ? $value : throw $this->wrong($member, 'true or false');
    }

    public function object(string $member): self
    {
        $value = $this->value($member);
        return $value instanceof \stdClass
            ? new self("$this->name's $member", $value)
            : throw $this->wrong($member, 'an object');
    }

    /**
     * @return list<string>
     */
    public function texts(string $member): array
    {
        $texts = [];
        foreach ($this->items($member) as $value) {
            $texts[] = is_string($value) ? $value : throw $this->wrong($member, 'a list of strings');
        }
        return $texts;
    }

    /**
     * @return list<array{string, string}>
     */
    public function pairs(string $member): array
    {
        $pairs = [];
        foreach ($this->items($member) as $value) {
            if (!is_array($value) || count($value) !== 2 || !is_string($value[0]) || !is_string($value[1])) {
                throw $this->wrong($member, 'a list of pairs of strings');
            }
            $pairs[] = [$value[0], $value[1]];
        }
        return $pairs;
    }

    /**
     * @return array{string, int}
     */
    public function address(string $member): array
    {
        $value = $this->items($member);
        if (count($value) !== 2 || !is_string($value[0]) || !is_int($value[1])) {
            throw $this->wrong($member, '[host, port]');
        }
        return [$value[0], $value[1]];
    }

    /**
     * @return array<string> by name
     */
    public function map(string $member): array
    {
        $map = [];
        foreach (get_object_vars($this->object($member)->members) as $name => $value) {
            $map[$name] = is_string($value) ? $value : throw $this->wrong($member, 'an object of strings');
        }
        return $map;
    }

    /**
     * @return list<mixed>
     */
    private function items(string $member): array
    {
        $value = $this->value($member);
        return is_array($value) ? array_values($value) : throw $this->wrong($member, 'a list');
    }

    private function value(string $member): mixed
    {
        return property_exists($this->members, $member)
            ? $this->members->$member
            : throw new WireError("$this->name: missing member $member");
    }

    private function wrong(string $member, string $expected): WireError
    {
        return new WireError("$this->name: $member is not $expected");
    }
}
