<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;

/**
 * A JSON document of the wire, whose members are asked for with their types.
 *
 * Objects are read as such and not as arrays: PHP's arrays cannot tell {} from [].
 */
final class Document
{
    private function __construct(private readonly string $name, private readonly \stdClass $members)
    {
    }

    /**
     * Reads a payload; members that nobody asks for are ignored.
     *
     * @param string $name of the frame, for the errors
     *
     * @throws WireError no JSON object, or another version
     */
    public static function decode(string $payload, string $name): self
    {
        $members = json_decode($payload);
        if (json_last_error() !== JSON_ERROR_NONE) {
            throw new WireError("$name is not a JSON document in UTF-8");
        }
        if (!$members instanceof \stdClass || ($members->version ?? null) !== Frame::VERSION) {
            throw new WireError("$name is not of version " . Frame::VERSION . ' of the wire');
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
        return is_string($value) ? $value : throw $this->wrong($member, 'no string');
    }

    public function optionalText(string $member): ?string
    {
        return $this->value($member) === null ? null : $this->text($member);
    }

    public function number(string $member): int
    {
        $value = $this->value($member);
        return is_int($value) ? $value : throw $this->wrong($member, 'no number');
    }

    public function truth(string $member): bool
    {
        $value = $this->value($member);
        return is_bool($value) ? $value : throw $this->wrong($member, 'neither true nor false');
    }

    public function object(string $member): self
    {
        $value = $this->value($member);
        return $value instanceof \stdClass
            ? new self("$this->name's $member", $value)
            : throw $this->wrong($member, 'no object');
    }

    /**
     * @return list<string>
     */
    public function texts(string $member): array
    {
        $texts = [];
        foreach ($this->items($member) as $value) {
            $texts[] = is_string($value) ? $value : throw $this->wrong($member, 'no list of strings');
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
                throw $this->wrong($member, 'no list of pairs');
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
            throw $this->wrong($member, 'no address and port');
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
            $map[$name] = is_string($value) ? $value : throw $this->wrong($member, 'no object of strings');
        }
        return $map;
    }

    /**
     * @return list<mixed>
     */
    private function items(string $member): array
    {
        $value = $this->value($member);
        return is_array($value) ? array_values($value) : throw $this->wrong($member, 'no list');
    }

    private function value(string $member): mixed
    {
        return property_exists($this->members, $member)
            ? $this->members->$member
            : throw new WireError("$this->name lacks the member $member");
    }

    private function wrong(string $member, string $what): WireError
    {
        return new WireError("$this->name has a member of the wrong type: $member is $what");
    }
}
